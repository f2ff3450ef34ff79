#include <utility>

#include "client/deadline.h"
#include "client/save_state.h"
#include "esker/checkpointer.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {

namespace {

// A copy that shares nothing with the one that the save's thread will destroy: absl counts references to an
// error in its library, where ThreadSanitizer does not see it.
absl::Status Detached(const absl::Status& status) { return absl::Status(status.code(), status.message()); }

}  // namespace

void SaveHandle::Shared::Finish(absl::Status status) {
  counters.phase = status.ok() ? SaveProgress::Phase::kCommitted : SaveProgress::Phase::kFailed;
  MutexLock lock(&mu);
  ESKER_CHECK(!done);
  done = true;
  result = std::move(status);
  finished.NotifyAll();
}

SaveHandle::SaveHandle(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

absl::Status SaveHandle::Wait() const {
  MutexLock lock(&shared_->mu);
  while (!shared_->done) shared_->finished.Wait(&shared_->mu);
  return Detached(shared_->result);
}

absl::Status SaveHandle::WaitFor(uint64_t timeout_ms) const {
  const Deadline deadline = Deadline::After(timeout_ms);
  MutexLock lock(&shared_->mu);
  while (!shared_->done) {
    if (!shared_->finished.WaitUntil(&shared_->mu, deadline.time()) && !shared_->done) {
      return absl::DeadlineExceededError(
          StrCat("the save of step ", shared_->step, " is still under way after ", timeout_ms, " ms"));
    }
  }
  return Detached(shared_->result);
}

bool SaveHandle::Done() const {
  MutexLock lock(&shared_->mu);
  return shared_->done;
}

absl::Status SaveHandle::Result() const {
  MutexLock lock(&shared_->mu);
  if (shared_->done) return Detached(shared_->result);
  return absl::UnavailableError(StrCat("the save of step ", shared_->step, " is under way"));
}

SaveProgress SaveHandle::Progress() const {
  const SaveCounters& counters = shared_->counters;
  SaveProgress progress;
  progress.phase = counters.phase;
  progress.raw_bytes = counters.raw_bytes;
  progress.processed_bytes = counters.processed_bytes;
  progress.sent_bytes = counters.sent_bytes;
  progress.deduplicated_bytes = counters.deduplicated_bytes;
  progress.unchanged_bytes = counters.unchanged_bytes;
  progress.transport = counters.transport;
  return progress;
}

uint64_t SaveHandle::step() const { return shared_->step; }

}  // namespace esker
