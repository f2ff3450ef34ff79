#include "server/rpc/unary_calls.h"

#include <chrono>

#include "format/base/text.h"

namespace esker {

absl::Status UnaryCalls::Enter(uint64_t request_bytes) {
  MutexLock lock(&mu_);
  // A request that is alone is always let in: its own limit is max_message_bytes.
  if (pending_calls_ > 0 && (pending_calls_ >= options_.max_pending_calls ||
                             pending_bytes_ + request_bytes > options_.max_pending_request_bytes)) {
    return absl::UnavailableError(
        StrCat("the server is busy: ", pending_calls_, " calls with ", pending_bytes_,
               " bytes of requests are waiting (limits: ", options_.max_pending_calls, " calls, ",
               options_.max_pending_request_bytes, " bytes); try again in a moment"));
  }
  ++pending_calls_;
  pending_bytes_ += request_bytes;
  return absl::OkStatus();
}

void UnaryCalls::Leave(uint64_t request_bytes) {
  MutexLock lock(&mu_);
  --pending_calls_;
  pending_bytes_ -= request_bytes;
}

absl::Status UnaryCalls::CheckStillWanted(const grpc::CallbackServerContext& context) {
  const auto late = std::chrono::system_clock::now() - context.deadline();
  if (late >= late.zero()) {
    return absl::DeadlineExceededError(StrCat(
        "not executed: the call's turn came ",
        std::chrono::duration_cast<std::chrono::milliseconds>(late).count(), " ms after its deadline"));
  }
  if (context.IsCancelled()) return absl::CancelledError("not executed: the client cancelled the call");
  return absl::OkStatus();
}

}  // namespace esker
