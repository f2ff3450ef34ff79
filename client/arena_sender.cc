#include "client/arena_sender.h"

#include <cstring>
#include <string>
#include <utility>

#include "client/local_access.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// A greeting takes microseconds. A server that hangs is not to hold up the training loop for long.
constexpr uint64_t kGreetingMs = 1'000;
constexpr uint64_t kTakenMs = 1'000;  // likewise

}  // namespace

ArenaSender::ArenaSender(Connection* connection, Transport transport)
    : connection_(connection), transport_(transport), may_share_(transport != Transport::kGrpc) {}

absl::Status ArenaSender::Find(const Deadline& deadline) {
  if (!may_share_) return absl::OkStatus();
  const absl::Status found = FindLocalSocket(connection_, deadline).status();
  if (found.ok()) return absl::OkStatus();
  if (must_share()) return Annotate(found, "shared memory was asked for");
  why_not_ = found;
  if (IsForGood(found)) RuleOut(found);
  return absl::OkStatus();
}

void ArenaSender::RuleOut(const absl::Status& why) {
  was_connected_ = false;
  static_cast<void>(ConnectFailed(why));
  may_share_ = must_share();
  Disconnect();
}

absl::Status ArenaSender::ConnectFailed(const absl::Status& status) {
  connect_failed_ = true;
  why_not_ = status;
  // What has worked works again: a server that stops has no socket for a while.
  if (IsForGood(status) && !was_connected_) may_share_ = must_share();
  return status;
}

void ArenaSender::TellWhyNot() const {
  if (!why_not_.ok()) TellWhyGrpc(connection_, why_not_);
}

void ArenaSender::Disconnect() {
  socket_.reset();
  block_view_.reset();
  block_.reset();
}

absl::Status ArenaSender::Connect(const std::shared_ptr<StagingBlock>& block) {
  if (socket_.has_value() && block_ == block) return absl::OkStatus();
  Disconnect();
  if (block->descriptor() < 0) {
    return ConnectFailed(absl::UnimplementedError("the system gave no memory that can be shared"));
  }
  v1::LocalHello hello;
  hello.set_arena_bytes(block->size());
  const Deadline deadline = Deadline::After(kGreetingMs);
  absl::StatusOr<LocalGreeting> greeting = GreetLocally(connection_, hello, block->descriptor(), deadline);
  if (absl::IsUnavailable(greeting.status())) {
    // As a channel to a server that was started anew says once.
    connection_->ResetControl();
    greeting = GreetLocally(connection_, hello, block->descriptor(), deadline);
  }
  if (!greeting.ok()) return ConnectFailed(greeting.status());
  connect_failed_ = false;
  why_not_ = absl::OkStatus();
  was_connected_ = true;
  socket_ = std::move(greeting->socket);
  block_ = block;
  return absl::OkStatus();
}

absl::Status ArenaSender::Start(const Snapshot& snapshot, const v1::ArenaSave& save) {
  ESKER_RETURN_IF_ERROR(Connect(snapshot.block));
  const std::string bytes = save.SerializeAsString();
  v1::LocalRequest request;
  request.mutable_save()->set_request_offset(snapshot.records_end());
  request.mutable_save()->set_request_bytes(bytes.size());
  ESKER_CHECK(snapshot.records_end() + bytes.size() <= block_->size());
  std::memcpy(block_->data() + snapshot.records_end(), bytes.data(), bytes.size());
  ESKER_RETURN_IF_ERROR(Send(request));
  block_view_ = block_->View();
  return absl::OkStatus();
}

absl::Status ArenaSender::Ready(size_t chunks) {
  v1::LocalRequest request;
  request.mutable_ready()->set_chunks(chunks);
  return Send(request);
}

bool ArenaSender::AwaitTaken() const { return socket_->AwaitPacket(Deadline::After(kTakenMs).time()); }

absl::Status ArenaSender::Send(const v1::LocalRequest& request) {
  const absl::Status sent = socket_->Send(request.SerializeAsString());
  if (sent.ok()) return sent;
  // A server that was started anew is found at the next try; one that hangs may still use the block.
  if (!absl::IsUnavailable(sent)) block_->Abandon();
  Disconnect();
  why_not_ = absl::UnavailableError(StrCat("server ", connection_->server(), ": ", MessageOf(sent)));
  return why_not_;
}

absl::StatusOr<v1::LocalAnswer> ArenaSender::Next(const Deadline& deadline) {
  absl::StatusOr<v1::LocalAnswer> answer = ReceiveAnswer(*socket_, deadline);
  if (!answer.ok()) {
    if (!absl::IsUnavailable(answer.status())) block_->Abandon();
    Disconnect();
    return Annotate(answer.status(), StrCat("server ", connection_->server()));
  }
  if (answer->has_sealed() || answer->has_failed()) block_view_.reset();
  return answer;
}

}  // namespace esker
