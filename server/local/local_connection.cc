#include "server/local/local_connection.h"

#include <unistd.h>

#include <chrono>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

// A client says who it is at once.
constexpr std::chrono::seconds kGreetingTimeout{10};
// As long as a message of gRPC may be, which a save elsewhere needs for its layout.
constexpr uint64_t kMaxSaveRequestBytes = 64 << 20;
constexpr size_t kMaxFailureBytes = 2048;

std::string SaveText(const v1::ArenaSave& save) {
  return StrCat(save.run(), "@", save.step(), " attempt ", save.attempt(), " rank ", save.rank());
}

}  // namespace

void LocalConnection::Run() {
  const absl::Status status = Serve();
  if (!absl::IsUnavailable(status)) {
    spdlog::warn("a client on this host was refused: {}", status.ToString());
    AnswerFailure(status);
  }
  // Before memory goes back that the client may be reading: what it finds there from now on is not for it.
  socket_.StopSending();
  reads_ = nullptr;
}

absl::Status LocalConnection::Serve() {
  ESKER_RETURN_IF_ERROR(Greet());
  return reads_ != nullptr ? ServeReads() : ServeSaves();
}

absl::Status LocalConnection::ServeSaves() {
  while (true) {
    ESKER_ASSIGN_OR_RETURN(const v1::LocalRequest request, NextRequest(std::nullopt, nullptr));
    if (request.has_save()) {
      Save(request.save());
    } else if (!request.has_ready()) {  // what is ready of a save that has failed meanwhile
      return absl::InvalidArgumentError("expected a save on the Unix socket");
    }
  }
}

absl::Status LocalConnection::ServeReads() {
  while (true) {
    const absl::StatusOr<v1::LocalRequest> request = NextRequest(reads_->ReleaseDue(), nullptr);
    ESKER_RETURN_IF_ERROR(reads_->Check());
    if (absl::IsDeadlineExceeded(request.status())) continue;
    ESKER_RETURN_IF_ERROR(request.status());
    if (!request->has_reads()) return absl::InvalidArgumentError("expected reads on the Unix socket");
    ESKER_RETURN_IF_ERROR(reads_->Take(request->reads()));
  }
}

absl::Status LocalConnection::Greet() {
  ESKER_ASSIGN_OR_RETURN(const uid_t user, socket_.PeerUser());
  if (user != ::geteuid() && user != 0) {
    return absl::PermissionDeniedError(
        StrCat("user ", user, " has no access to the memory of a server of user ", ::geteuid()));
  }
  UniqueFd memory;
  ESKER_ASSIGN_OR_RETURN(const v1::LocalRequest request,
                         NextRequest(std::chrono::steady_clock::now() + kGreetingTimeout, &memory));
  if (!request.has_hello()) return absl::InvalidArgumentError("expected a hello on the Unix socket");
  if (request.hello().token() != token_) {
    return absl::FailedPreconditionError(
        "the Unix socket belongs to another server, or to another start of it, than the one asked over gRPC");
  }
  v1::LocalAnswer answer;
  v1::LocalWelcome* const welcome = answer.mutable_welcome();
  if (!request.hello().reads()) {
    ESKER_ASSIGN_OR_RETURN(arena_, Arena::Map(memory, request.hello().arena_bytes()));
    Answer(answer);
    return absl::OkStatus();
  }
  const BufferPool& buffers = *backend_->store->buffers();
  if (!buffers.descriptor()) return absl::UnimplementedError("this server's system can't share its buffers");
  welcome->set_buffers_bytes(buffers.memory().size());
  reads_ = std::make_unique<LocalReads>(backend_, &socket_);
  Answer(answer, buffers.descriptor().get());
  return absl::OkStatus();
}

absl::StatusOr<v1::LocalRequest> LocalConnection::NextRequest(std::optional<UnixSocket::TimePoint> until,
                                                              UniqueFd* descriptor) {
  ESKER_ASSIGN_OR_RETURN(Packet packet, socket_.Receive(until));
  v1::LocalRequest request;
  if (!request.ParseFromString(packet.bytes)) {
    return absl::InvalidArgumentError("a packet on the Unix socket is no LocalRequest");
  }
  if (descriptor != nullptr) *descriptor = std::move(packet.descriptor);
  return request;
}

// A copy: the client may change what stands in the arena.
absl::StatusOr<v1::ArenaSave> LocalConnection::ReadSave(const v1::LocalSave& where) const {
  const uint64_t arena_bytes = arena_->memory().size();
  if (where.request_bytes() > kMaxSaveRequestBytes || where.request_offset() > arena_bytes ||
      where.request_bytes() > arena_bytes - where.request_offset()) {
    return absl::InvalidArgumentError(StrCat("a save's request of ", where.request_bytes(), " bytes at ",
                                             where.request_offset(), " of an arena of ", arena_bytes,
                                             " bytes; it may have ", kMaxSaveRequestBytes));
  }
  const ByteView bytes = ByteView(arena_->memory()).subspan(where.request_offset(), where.request_bytes());
  const std::string copy(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  v1::ArenaSave save;
  if (!save.ParseFromString(copy)) return absl::InvalidArgumentError("a save's request is no ArenaSave");
  return save;
}

void LocalConnection::Save(const v1::LocalSave& where) {
  absl::StatusOr<v1::ArenaSave> request = ReadSave(where);
  if (!request.ok()) {
    AnswerFailure(request.status());
    return;
  }
  const std::string text = SaveText(*request);
  // Until nothing of it is under way, if need be until it is aborted: so long the run gets no next attempt.
  std::shared_ptr<const void> hold = backend_->coordinator->HoldSave(request->run());
  v1::LocalAnswer taken;
  taken.mutable_taken();
  Answer(taken);
  ArenaSave save(backend_, arena_, &history_, [this](const v1::LocalAnswer& answer) { Answer(answer); });
  absl::StatusOr<v1::LocalSealed> sealed =
      save.Run(*std::move(request), [this](UnixSocket::TimePoint until) { return NextReady(until); });
  v1::LocalAnswer answer;
  if (sealed.ok()) {
    hold = nullptr;  // before whoever hears of it may ask for that attempt
    *answer.mutable_sealed() = *std::move(sealed);
    if (!Answer(answer)) spdlog::info("{}: saved from memory that its process left behind", text);
    return;
  }
  spdlog::info("{}: not saved from shared memory: {}", text, sealed.status().ToString());
  const bool may_try_again = AnswerFailure(sealed.status()) && !absl::IsAborted(sealed.status());
  if (may_try_again || save.context().save_id() == 0 || backend_->stopping) return;
  // Nobody is left who would try again, and the other ranks need not wait until their time runs out. If the
  // save was aborted before, this lets go of what the part has taken in the store since.
  v1::AbortSaveRequest abort;
  *abort.mutable_save() = save.context();
  abort.set_reason(
      StrCat("rank ", save.context().rank(), ", whose process is gone: ", MessageOf(sealed.status())));
  static_cast<void>(backend_->coordinator->AbortSave(abort));
}

absl::StatusOr<uint64_t> LocalConnection::NextReady(UnixSocket::TimePoint until) {
  const absl::StatusOr<v1::LocalRequest> request = NextRequest(until, nullptr);
  if (absl::IsUnavailable(request.status())) {
    return absl::CancelledError("the client is gone, and its snapshot was not complete");
  }
  ESKER_RETURN_IF_ERROR(request.status());
  if (!request->has_ready())
    return absl::InvalidArgumentError("expected to hear of ready chunks on the Unix socket");
  return request->ready().chunks();
}

bool LocalConnection::Answer(const v1::LocalAnswer& answer, int descriptor) {
  const std::string packet = answer.SerializeAsString();
  // A client that takes nothing misses what it is told; it learns of the save's end from the coordinator.
  return packet.size() <= kMaxPacketBytes && socket_.Send(packet, descriptor).ok();
}

bool LocalConnection::AnswerFailure(const absl::Status& status) {
  v1::LocalAnswer answer;
  answer.mutable_failed()->set_code(static_cast<uint32_t>(status.code()));
  answer.mutable_failed()->set_message(std::string(MessageOf(status).substr(0, kMaxFailureBytes)));
  return Answer(answer);
}

}  // namespace esker
