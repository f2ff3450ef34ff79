// The share of the store's buffer pool that reads may hold. Chunks on their way to slow clients would
// otherwise take all of the pool, and no save could go on.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>

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

  // `granted` is called once: at once on this thread, or later on the thread that gives enough back. It must
  // be short and take no lock that may be held by one who calls GiveBack.
  void Acquire(uint64_t bytes, std::function<void()> granted);
  void GiveBack(uint64_t bytes);

  // Blocks until all of it was given back. Returns false if that takes longer.
  bool WaitUntilWhole(std::chrono::milliseconds timeout);

 private:
  struct Waiter {
    uint64_t bytes;
    std::function<void()> granted;
  };

  const uint64_t capacity_bytes_;

  Mutex mu_;
  CondVar given_back_;
  uint64_t free_bytes_ ABSL_GUARDED_BY(mu_);
  std::deque<Waiter> waiters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
