#include "tools/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

#include "format/base/status.h"

namespace esker {

InterruptGuard::InterruptGuard(std::function<void()> cleanup) : cleanup_(std::move(cleanup)) {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, number);
  ESKER_CHECK(::pthread_sigmask(SIG_BLOCK, &signals, &previous_mask_) == 0);
  signal_fd_ = ::signalfd(-1, &signals, SFD_CLOEXEC);
  stop_fd_ = ::eventfd(0, EFD_CLOEXEC);
  ESKER_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  thread_ = std::thread([this] { Watch(); });
}

InterruptGuard::~InterruptGuard() {
  ESKER_CHECK(::eventfd_write(stop_fd_, 1) == 0);
  thread_.join();
  ::close(signal_fd_);
  ::close(stop_fd_);
  ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

void InterruptGuard::Watch() {
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents != 0) return;
    signalfd_siginfo info{};
    if (::read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    cleanup_();
    // Not exit: other threads are at work, and static objects must not go from under them.
    ::_exit(128 + static_cast<int>(info.ssi_signo));
  }
}

}  // namespace esker
