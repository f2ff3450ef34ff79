#include "server/rpc/read_budget.h"

#include <utility>
#include <vector>

#include "format/base/status.h"

namespace esker {

ReadBudget::ReadBudget(uint64_t bytes) : capacity_bytes_(bytes), free_bytes_(bytes) {}

ReadBudget::~ReadBudget() {
  MutexLock lock(&mu_);
  ESKER_CHECK(free_bytes_ == capacity_bytes_ && waiters_.empty());
}

void ReadBudget::Acquire(uint64_t bytes, std::function<void()> granted) {
  ESKER_CHECK(bytes <= capacity_bytes_);
  {
    MutexLock lock(&mu_);
    if (!waiters_.empty() || free_bytes_ < bytes) {
      waiters_.push_back({bytes, std::move(granted)});
      return;
    }
    free_bytes_ -= bytes;
  }
  granted();
}

void ReadBudget::GiveBack(uint64_t bytes) {
  std::vector<std::function<void()>> granted;
  {
    MutexLock lock(&mu_);
    free_bytes_ += bytes;
    ESKER_CHECK(free_bytes_ <= capacity_bytes_);
    while (!waiters_.empty() && waiters_.front().bytes <= free_bytes_) {
      free_bytes_ -= waiters_.front().bytes;
      granted.push_back(std::move(waiters_.front().granted));
      waiters_.pop_front();
    }
    // Under the lock: who waits for the last share may destroy the budget right after.
    given_back_.NotifyAll();
  }
  for (const auto& call : granted) call();
}

bool ReadBudget::WaitUntilWhole(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(&mu_);
  while (free_bytes_ < capacity_bytes_) {
    if (!given_back_.WaitUntil(&mu_, deadline)) break;
  }
  return free_bytes_ == capacity_bytes_;
}

}  // namespace esker
