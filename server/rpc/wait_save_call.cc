#include "server/rpc/wait_save_call.h"

#include "server/rpc/grpc_status.h"

namespace esker {

WaitSaveCall::WaitSaveCall(RpcBackend* backend, const v1::WaitSaveRequest& request, v1::SaveStatus* response)
    : backend_(backend), response_(response), line_(std::make_shared<Line>()) {
  {
    MutexLock lock(&line_->mu);
    line_->call = this;
  }
  backend_->watch.Add(this);
  // Never waits, but may have to look into the catalog.
  backend_->calls.Schedule([coordinator = backend_->coordinator, line = line_, request] {
    coordinator->WaitSave(
        request, [line](const absl::StatusOr<v1::SaveStatus>& answer) { Answer(line.get(), answer); });
  });
}

void WaitSaveCall::Answer(Line* line, const absl::StatusOr<v1::SaveStatus>& answer) {
  MutexLock lock(&line->mu);
  WaitSaveCall* const call = std::exchange(line->call, nullptr);
  if (call == nullptr) return;
  if (answer.ok()) *call->response_ = *answer;
  call->Finish(ToGrpcStatus(answer.status()));
}

void WaitSaveCall::OnCancel() { Answer(line_.get(), absl::CancelledError("the client cancelled the call")); }

void WaitSaveCall::OnTick(int64_t /*now_ms*/, bool draining) {
  if (draining) Answer(line_.get(), absl::UnavailableError("WaitSave: the server is stopping; try again"));
}

void WaitSaveCall::OnDone() {
  backend_->watch.Remove(this);
  {
    // Whoever answered may still hold it.
    MutexLock lock(&line_->mu);
  }
  delete this;
}

}  // namespace esker
