// The share of the store's buffer pool that reads may hold. Chunks on their way to slow clients would
// otherwise take all of the pool, and no save could go on.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "format/base/mutex.h"

namespace esker {

// Thread-safe. Grants in order of arrival.
class ReadBudget {
 public:
  explicit ReadBudget(uint64_t bytes);
  // All of it must have been given back.
  ~ReadBudget();
  ReadBudget(const ReadBudget&) = delete;
  ReadBudget& operator=(const ReadBudget&) = delete;

  // `answer` is called once: with true at once on this thread, or later on the thread that gives enough back;
  // or with false on the thread that withdraws `reader`. It must be short and take no lock that may be held
  // by one who calls GiveBack or Withdraw.
  void Acquire(uint64_t bytes, const void* reader, std::function<void(bool)> answer);
  void GiveBack(uint64_t bytes);
  // Takes what waits for `reader` out of the line.
  void Withdraw(const void* reader);

  // Blocks until all of it was given back. Returns false if that takes longer.
  bool WaitUntilWhole(std::chrono::milliseconds timeout);

 private:
  struct Waiter {
    uint64_t bytes;
    const void* reader;
    std::function<void(bool)> answer;
  };

  using Answers = std::vector<std::function<void(bool)>>;

  // Takes from the head of the line those for whom there is enough.
  Answers GrantLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t capacity_bytes_;

  Mutex mu_;
  CondVar given_back_;
  uint64_t free_bytes_ ABSL_GUARDED_BY(mu_);
  std::deque<Waiter> waiters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
