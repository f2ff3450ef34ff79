#include "server/users_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// flock() that waits could not be interrupted from another thread.
constexpr std::chrono::milliseconds kInterval{100};

}  // namespace

absl::StatusOr<std::unique_ptr<UsersWatch>> UsersWatch::Start(const std::string& path,
                                                              std::function<void()> unused) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, StrCat("opening ", path));
  return std::unique_ptr<UsersWatch>(new UsersWatch(fd, std::move(unused)));
}

UsersWatch::UsersWatch(int fd, std::function<void()> unused)
    : fd_(fd), unused_(std::move(unused)), thread_([this] { Watch(); }) {
  pthread_setname_np(thread_.native_handle(), "esker-users");
}

UsersWatch::~UsersWatch() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stop_changed_.NotifyAll();
  thread_.join();
  ::close(fd_);
}

void UsersWatch::Watch() {
  while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    if (!Pause()) return;
  }
  unused_();
}

bool UsersWatch::Pause() {
  const auto deadline = std::chrono::steady_clock::now() + kInterval;
  MutexLock lock(&mu_);
  while (!stopping_ && stop_changed_.WaitUntil(&mu_, deadline)) {
  }
  return !stopping_;
}

}  // namespace esker
