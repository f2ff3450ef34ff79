// A fixed number of threads that run tasks in the order in which they were given.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "format/base/mutex.h"

namespace esker {

// Thread-safe. A task may schedule further tasks, but must not wait for one.
class ThreadPool {
 public:
  // Starts `threads` threads, named `name` in the system's tools (at most 15 characters). `niceness`: how
  // much they stand back for other threads of the machine (setpriority; 0: not at all).
  ThreadPool(int threads, const std::string& name, int niceness = 0);
  // Runs every task that was scheduled, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Never blocks. The queue has no limit of its own: whoever schedules bounds what is in flight.
  void Schedule(std::function<void()> task);

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  void Work(int niceness);

  Mutex mu_;
  CondVar wake_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace esker
