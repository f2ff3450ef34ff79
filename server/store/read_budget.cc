#include "server/store/read_budget.h"

#include <utility>
#include <vector>

#include "format/base/status.h"

namespace esker {

ReadBudget::ReadBudget(uint64_t bytes) : capacity_bytes_(bytes), free_bytes_(bytes) {}

ReadBudget::~ReadBudget() {
  MutexLock lock(&mu_);
  ESKER_CHECK(free_bytes_ == capacity_bytes_ && waiters_.empty());
}

void ReadBudget::Acquire(uint64_t bytes, const void* reader, std::function<void(bool)> answer) {
  ESKER_CHECK(bytes <= capacity_bytes_);
  {
    MutexLock lock(&mu_);
    if (!waiters_.empty() || free_bytes_ < bytes) {
      waiters_.push_back({bytes, reader, std::move(answer)});
      return;
    }
    free_bytes_ -= bytes;
  }
  answer(true);
}

ReadBudget::Answers ReadBudget::GrantLocked() {
  Answers granted;
  while (!waiters_.empty() && waiters_.front().bytes <= free_bytes_) {
    free_bytes_ -= waiters_.front().bytes;
    granted.push_back(std::move(waiters_.front().answer));
    waiters_.pop_front();
  }
  return granted;
}

void ReadBudget::GiveBack(uint64_t bytes) {
  Answers granted;
  {
    MutexLock lock(&mu_);
    free_bytes_ += bytes;
    ESKER_CHECK(free_bytes_ <= capacity_bytes_);
    granted = GrantLocked();
    // Under the lock: who waits for the last share may destroy the budget right after.
    given_back_.NotifyAll();
  }
  for (const auto& answer : granted) answer(true);
}

void ReadBudget::Withdraw(const void* reader) {
  Answers withdrawn;
  Answers granted;
  {
    MutexLock lock(&mu_);
    std::deque<Waiter> others;
    for (Waiter& waiter : waiters_) {
      if (waiter.reader == reader) {
        withdrawn.push_back(std::move(waiter.answer));
      } else {
        others.push_back(std::move(waiter));
      }
    }
    waiters_ = std::move(others);
    // Who stood behind a large one may have enough.
    granted = GrantLocked();
  }
  for (const auto& answer : withdrawn) answer(false);
  for (const auto& answer : granted) answer(true);
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
