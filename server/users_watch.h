// Notices when the last process that uses a server has ended, for servers that a job brings up for itself.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"

namespace esker {

// A process uses the server while it holds a shared lock (flock) on a file. The kernel takes the lock from it
// when it ends, however it ends.
class UsersWatch {
 public:
  // Calls `unused` once, on a thread of its own, as soon as no process holds a lock on `path`; at once if
  // none does. From then on until the object or the process ends, nobody else gets the lock: who takes it
  // then waits for the end of this server, and has to start another one. Makes the file if it is not there.
  // Errors: as the system says.
  static absl::StatusOr<std::unique_ptr<UsersWatch>> Start(const std::string& path,
                                                           std::function<void()> unused);
  ~UsersWatch();
  UsersWatch(const UsersWatch&) = delete;
  UsersWatch& operator=(const UsersWatch&) = delete;

 private:
  UsersWatch(int fd, std::function<void()> unused);
  void Watch();
  // Whether the watch goes on.
  bool Pause();

  const int fd_;
  const std::function<void()> unused_;

  Mutex mu_;
  CondVar stop_changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace esker
