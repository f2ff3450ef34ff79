#include "client/get_stream.h"

#include <array>
#include <utility>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"
#include "grpcpp/support/slice.h"

namespace esker {
namespace {

std::string LeaseHello(uint64_t lease_id) {
  std::array<std::byte, sizeof(lease_id)> bytes;
  StoreLittle<uint64_t>(bytes.data(), lease_id);
  return EncodeHello(AsText(bytes));
}

}  // namespace

GetStream::GetStream(std::shared_ptr<grpc::Channel> channel, const std::string& server, uint64_t lease_id)
    : server_(server),
      hello_(LeaseHello(lease_id)),
      stream_(std::move(channel), server, "GetChunks", Deadline::After(~uint64_t{0})) {}

absl::Status GetStream::Nonsense(std::string_view what) const {
  return absl::DataLossError(StrCat("server ", server_, ": GetChunks: ", what));
}

absl::Status GetStream::Want(uint64_t tag, const Hash128& hash) {
  if (!greeted_) ESKER_RETURN_IF_ERROR(stream_.Write(CopyOf(hello_)));
  greeted_ = true;
  ESKER_RETURN_IF_ERROR(stream_.Write(CopyOf(EncodeWant(tag, hash))));
  wanted_.push_back(tag);
  return absl::OkStatus();
}

absl::StatusOr<FetchedChunk> GetStream::Next(uint64_t silence_ms) {
  ESKER_CHECK(!wanted_.empty());
  ESKER_ASSIGN_OR_RETURN(const grpc::ByteBuffer message, stream_.Read(Deadline::After(silence_ms)));
  const absl::StatusOr<std::string> frame = ToString(message, kMaxControlFrameBytes);
  if (!frame.ok()) return Nonsense(MessageOf(frame.status()));
  const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(AsBytes(*frame));
  if (!prefix.ok()) return Nonsense(MessageOf(prefix.status()));
  FetchedChunk chunk;
  chunk.tag = prefix->tag;
  if (chunk.tag != wanted_.front()) {
    return Nonsense(StrCat("expected the answer to want ", wanted_.front(), ", found that to ", chunk.tag));
  }
  wanted_.pop_front();
  if (prefix->type == FrameType::kError) {
    const absl::Status status = DecodeStatusFrame(AsBytes(*frame), &chunk.error);
    if (!status.ok()) return Nonsense(MessageOf(status));
    return chunk;
  }
  const absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(AsBytes(*frame));
  if (!info.ok()) return Nonsense(MessageOf(info.status()));
  chunk.info = *info;
  ESKER_RETURN_IF_ERROR(ReadBody(&chunk, silence_ms));
  return chunk;
}

absl::Status GetStream::ReadBody(FetchedChunk* chunk, uint64_t silence_ms) {
  auto body = std::make_shared<std::vector<grpc::Slice>>();
  uint64_t received = 0;
  while (received < chunk->info.stored_bytes) {
    ESKER_ASSIGN_OR_RETURN(const grpc::ByteBuffer message, stream_.Read(Deadline::After(silence_ms)));
    const uint64_t bytes = message.Length();
    if (bytes == 0 || bytes > chunk->info.stored_bytes - received) {
      return Nonsense(StrCat("after ", received, " of a chunk's ", chunk->info.stored_bytes,
                             " stored bytes, found a message of ", bytes));
    }
    std::vector<grpc::Slice> slices;
    if (const grpc::Status status = message.Dump(&slices); !status.ok()) {
      return absl::InternalError(StrCat("GetChunks: a message can't be read: ", status.error_message()));
    }
    for (grpc::Slice& slice : slices) body->push_back(std::move(slice));
    received += bytes;
  }
  for (const grpc::Slice& slice : *body) {
    chunk->stored.emplace_back(reinterpret_cast<const std::byte*>(slice.begin()), slice.size());
  }
  chunk->owner = std::move(body);
  return absl::OkStatus();
}

}  // namespace esker
