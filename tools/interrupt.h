// What has to be undone when the process is told to stop (SIGINT, SIGTERM, SIGHUP).
#pragma once

#include <signal.h>

#include <functional>
#include <thread>

namespace esker {

// While one lives, such a signal calls `cleanup` on a thread of its own and ends the process with 128 + the
// signal's number, as a shell would report it. Make it before any other thread is started (they inherit that
// the signals are held back), and only one at a time.
class InterruptGuard {
 public:
  explicit InterruptGuard(std::function<void()> cleanup);
  // From here on the signals do what they did before.
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  void Watch();

  // Constant after construction.
  const std::function<void()> cleanup_;
  sigset_t previous_mask_{};
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

}  // namespace esker
