#include "client/local_reads.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

#include "client/local_access.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"

namespace esker {
namespace {

absl::StatusOr<ByteView> MapBuffers(const LocalGreeting& greeting) {
  const uint64_t bytes = greeting.welcome.buffers_bytes();
  struct stat info {};
  if (bytes == 0 || !greeting.descriptor || ::fstat(greeting.descriptor.get(), &info) != 0 ||
      bytes > static_cast<uint64_t>(info.st_size)) {
    return absl::InternalError("the server's welcome came without its buffers");
  }
  const void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, greeting.descriptor.get(), 0);
  if (at != MAP_FAILED) return ByteView(static_cast<const std::byte*>(at), bytes);
  return absl::ResourceExhaustedError(
      StrCat("mapping the server's buffers of ", bytes, " bytes: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalReads>> LocalReads::Open(Connection* connection, uint64_t lease_id,
                                                             const Deadline& deadline) {
  v1::LocalHello hello;
  hello.set_reads(true);
  ESKER_ASSIGN_OR_RETURN(LocalGreeting greeting, GreetLocally(connection, std::move(hello), -1, deadline));
  ESKER_ASSIGN_OR_RETURN(const ByteView buffers, MapBuffers(greeting));
  return std::unique_ptr<LocalReads>(
      new LocalReads(connection->server(), std::move(greeting.socket), buffers, lease_id));
}

LocalReads::~LocalReads() { ::munmap(const_cast<std::byte*>(buffers_.data()), buffers_.size()); }

absl::Status LocalReads::Nonsense(std::string_view what) const {
  return absl::DataLossError(StrCat("server ", server_, ": reads over its Unix socket: ", what));
}

absl::Status LocalReads::Want(uint64_t tag, const Hash128& hash) {
  ESKER_CHECK(wanted_.insert(tag).second);
  request_.add_wants(EncodeWant(tag, hash));
  return absl::OkStatus();
}

absl::Status LocalReads::SendRequest() {
  if (request_.wants().empty() && request_.released().empty()) return absl::OkStatus();
  v1::LocalRequest request;
  request_.set_lease_id(lease_id_);
  request.mutable_reads()->Swap(&request_);
  return socket_.Send(request.SerializeAsString());
}

absl::StatusOr<FetchedChunk> LocalReads::Next(uint64_t silence_ms) {
  ESKER_CHECK(!wanted_.empty());
  // If the server has ended the connection, it may have said why.
  const absl::Status sent = SendRequest();
  absl::StatusOr<v1::LocalAnswer> answer = ReceiveAnswer(socket_, Deadline::After(silence_ms));
  if (!answer.ok()) return sent.ok() ? answer.status() : sent;
  if (answer->has_failed()) return Annotate(ToStatus(answer->failed()), StrCat("server ", server_));
  if (!answer->has_chunk()) return Nonsense("expected a chunk");
  return ToFetched(answer->chunk());
}

absl::StatusOr<FetchedChunk> LocalReads::ToFetched(const v1::LocalChunk& answer) {
  const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(AsBytes(answer.frame()));
  if (!prefix.ok()) return Nonsense(MessageOf(prefix.status()));
  FetchedChunk chunk;
  chunk.tag = prefix->tag;
  if (wanted_.erase(chunk.tag) == 0)
    return Nonsense(StrCat("found an answer to ", chunk.tag, ", which is not wanted"));
  if (prefix->type == FrameType::kError) {
    const absl::Status status = DecodeStatusFrame(AsBytes(answer.frame()), &chunk.error);
    if (!status.ok()) return Nonsense(MessageOf(status));
    return chunk;
  }
  const absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(AsBytes(answer.frame()));
  if (!info.ok()) return Nonsense(MessageOf(info.status()));
  const uint64_t bytes = info->stored_bytes;
  if (bytes > buffers_.size() || answer.offset() > buffers_.size() - bytes) {
    return Nonsense(StrCat(bytes, " stored bytes at ", answer.offset(), " of buffers of ", buffers_.size()));
  }
  chunk.info = *info;
  chunk.stored = {buffers_.subspan(answer.offset(), bytes)};
  chunk.owner = std::shared_ptr<const void>(
      chunk.stored[0].data(), [this, tag = chunk.tag](const void*) { request_.add_released(tag); });
  return chunk;
}

absl::Status LocalReads::CheckNotTakenBack() const {
  if (!socket_.IsPeerSilent()) return absl::OkStatus();
  return absl::UnavailableError(StrCat("server ", server_, " has taken its memory back"));
}

}  // namespace esker
