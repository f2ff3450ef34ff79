#include "server/rpc/raw_stream.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "format/base/text.h"
#include "server/rpc/grpc_status.h"

namespace esker {

RawStream::RawStream(RpcBackend* backend, grpc::CallbackServerContext* context, std::string name)
    : backend_(backend), context_(context), name_(std::move(name)) {}

void RawStream::Begin() {
  ReadNext(Awaiting::kHead);
  backend_->watch.Add(this);
}

void RawStream::ReadNext(Awaiting awaiting, int64_t chunk_deadline_ms) {
  MutexLock lock(&mu_);
  if (ended_) return FinishIfOverLocked();
  awaiting_ = awaiting;
  reading_ = true;
  read_deadline_ms_ = chunk_deadline_ms;
  TouchLocked();
  StartRead(&incoming_);
}

void RawStream::OnReadDone(bool ok) {
  {
    MutexLock lock(&mu_);
    reading_ = false;
    // Handling it must not meet the stream's end.
    ++work_;
    if (ended_) ok = false;
  }
  if (ok) {
    OnMessage(&incoming_);
  } else {
    incoming_.Clear();
    const std::optional<absl::Status> status = OnLastMessage(/*by_client=*/!context_->IsCancelled());
    if (status) End(*status);
  }
  EndWork();
}

void RawStream::Send(const grpc::ByteBuffer& message, std::function<void()> sent) {
  MutexLock lock(&mu_);
  if (broken_ || finished_) return;
  queue_.push_back({message, std::move(sent)});
  if (!writing_) WriteFrontLocked();
}

void RawStream::WriteFrontLocked() {
  writing_ = true;
  write_deadline_ms_ = NowMillis() + static_cast<int64_t>(backend_->options.stalled_chunk_timeout_ms);
  grpc::WriteOptions options;
  // More follows at once: let gRPC put them into one packet.
  if (queue_.size() > 1) options.set_buffer_hint();
  StartWrite(&queue_.front().message, options);
}

void RawStream::OnWriteDone(bool ok) {
  std::function<void()> sent;
  std::deque<Outgoing> dropped;
  {
    MutexLock lock(&mu_);
    writing_ = false;
    ++work_;
    if (ok) sent = std::move(queue_.front().sent);
    dropped.push_back(std::move(queue_.front()));
    queue_.pop_front();
    if (!ok) {
      broken_ = true;
      while (!queue_.empty()) {
        dropped.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
      EndLocked(absl::CancelledError("the client is gone"));
    }
    if (!queue_.empty()) WriteFrontLocked();
    TouchLocked();
  }
  dropped.clear();
  if (sent) sent();
  EndWork();
}

void RawStream::OnCancel() {
  std::deque<Outgoing> dropped;
  MutexLock lock(&mu_);
  broken_ = true;
  // The front one is gRPC's until OnWriteDone.
  while (queue_.size() > (writing_ ? 1 : 0)) {
    dropped.push_back(std::move(queue_.back()));
    queue_.pop_back();
  }
  EndLocked(absl::CancelledError("the client cancelled the stream"));
  FinishIfOverLocked();
}

void RawStream::OnDone() {
  backend_->watch.Remove(this);
  {
    // Whoever started the last operation may still hold it.
    MutexLock lock(&mu_);
  }
  delete this;
}

void RawStream::End(const absl::Status& status) {
  MutexLock lock(&mu_);
  EndLocked(status);
  FinishIfOverLocked();
}

bool RawStream::ended() const {
  MutexLock lock(&mu_);
  return ended_;
}

void RawStream::EndLocked(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  end_status_ = status;
  Withdraw();
}

void RawStream::BeginWork() {
  MutexLock lock(&mu_);
  ++work_;
}

void RawStream::EndWork() {
  MutexLock lock(&mu_);
  --work_;
  TouchLocked();
  FinishIfOverLocked();
}

void RawStream::FinishIfOverLocked() {
  if (finished_ || !ended_ || work_ > 0 || writing_ || !(queue_.empty() || broken_)) return;
  finished_ = true;
  finish_deadline_ms_ = NowMillis() + static_cast<int64_t>(backend_->options.stalled_chunk_timeout_ms);
  Finish(ToGrpcStatus(end_status_));
}

void RawStream::TouchLocked() {
  if (awaiting_ == Awaiting::kHead) {
    read_deadline_ms_ = NowMillis() + static_cast<int64_t>(backend_->options.idle_timeout_ms);
  }
}

absl::Status RawStream::OverdueLocked(int64_t now_ms) const {
  if (!reading_ || now_ms < read_deadline_ms_) return absl::OkStatus();
  if (awaiting_ == Awaiting::kRest) {
    return absl::DeadlineExceededError(StrCat(name_, ": the rest of a chunk did not come within ",
                                              backend_->options.stalled_chunk_timeout_ms,
                                              " ms; open a new stream and send the chunk again"));
  }
  if (work_ > 0 || writing_) return absl::OkStatus();
  return absl::DeadlineExceededError(StrCat(name_, ": no message for ", backend_->options.idle_timeout_ms,
                                            " ms; open a new stream when there is more to do"));
}

void RawStream::OnTick(int64_t now_ms, bool draining) {
  const bool held_too_long = HeldTooLong(now_ms);
  MutexLock lock(&mu_);
  if (finished_) {
    // The status went out, but gRPC can't get rid of it: the client takes nothing any more.
    if (now_ms >= finish_deadline_ms_) context_->TryCancel();
    return;
  }
  if ((writing_ && now_ms >= write_deadline_ms_) || (held_too_long && !broken_)) {
    spdlog::warn("{}: {} took no message for {} ms; the stream is cancelled", name_, context_->peer(),
                 backend_->options.stalled_chunk_timeout_ms);
    write_deadline_ms_ = now_ms + static_cast<int64_t>(backend_->options.stalled_chunk_timeout_ms);
    EndLocked(absl::DeadlineExceededError(StrCat(name_, ": the client took no message for too long")));
    context_->TryCancel();
    return;
  }
  if (ended_) return;
  if (const absl::Status overdue = OverdueLocked(now_ms); !overdue.ok()) {
    // Idle streams are every day's; a chunk that stays half has held memory.
    const auto level = awaiting_ == Awaiting::kRest ? spdlog::level::warn : spdlog::level::debug;
    spdlog::log(level, "{} ({})", MessageOf(overdue), context_->peer());
    EndLocked(overdue);
  } else if (draining && reading_ && awaiting_ == Awaiting::kHead && work_ == 0 && queue_.empty()) {
    EndLocked(absl::UnavailableError(StrCat(name_, ": the server is stopping; try again")));
  }
  FinishIfOverLocked();
}

}  // namespace esker
