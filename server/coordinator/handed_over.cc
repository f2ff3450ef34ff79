#include "server/coordinator/handed_over.h"

#include "format/base/text.h"

namespace esker {

std::shared_ptr<const void> HandedOver::Hold(const std::string& run) {
  {
    MutexLock lock(&mu_);
    ++runs_[run].parts;
  }
  return std::shared_ptr<const void>(this, [this, run](const void*) { Drop(run); });
}

void HandedOver::Drop(const std::string& run) {
  MutexLock lock(&mu_);
  const auto known = runs_.find(run);
  if (--known->second.parts == 0) runs_.erase(known);
}

absl::Status HandedOver::CheckNone(const std::string& run) {
  MutexLock lock(&mu_);
  const auto known = runs_.find(run);
  if (known == runs_.end()) return absl::OkStatus();
  const int64_t now_ms = clock_->MonotonicMillis();
  if (known->second.asked_first_ms == 0) known->second.asked_first_ms = now_ms;
  if (now_ms - known->second.asked_first_ms >= kPatienceMs) return absl::OkStatus();
  return absl::UnavailableError(StrCat("run ", run, ": the server is still writing ", known->second.parts,
                                       " parts that ranks of the last attempt have left with it; try again"));
}

}  // namespace esker
