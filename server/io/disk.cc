#include "server/io/disk.h"

#include <optional>
#include <utility>

#include "format/base/mutex.h"
#include "format/base/status.h"
#include "server/io/posix_disk.h"
#include "server/io/posix_file.h"
#include "server/io/thread_pool_disk.h"
#include "server/io/uring_disk.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

// Runs start(callback) and waits until the callback was called.
template <typename Start>
absl::Status WaitFor(const Start& start) {
  ESKER_CHECK(!OnEngineThread());
  Mutex mu;
  CondVar ended;
  std::optional<absl::Status> result;
  start([&](absl::Status status) {
    // Notifies under the lock: the waiter's frame may be gone right after.
    MutexLock lock(&mu);
    result = std::move(status);
    ended.NotifyOne();
  });
  MutexLock lock(&mu);
  while (!result.has_value()) ended.Wait(&mu);
  return *std::move(result);
}

absl::StatusOr<std::unique_ptr<IoEngine>> StartEngine(const std::string& directory, DiskEngine engine) {
  if (engine == DiskEngine::kThreadPool) return StartThreadPoolEngine();
  absl::StatusOr<std::unique_ptr<IoEngine>> uring = StartUringEngine();
  if (uring.ok() || engine == DiskEngine::kUring) return uring;
  spdlog::warn("{}: the slower thread-pool engine reads and writes here. {}", directory,
               uring.status().ToString());
  return StartThreadPoolEngine();
}

}  // namespace

absl::Status DiskFile::Read(uint64_t offset, MutableBytes to) {
  return WaitFor([&](Callback done) { ReadAsync(offset, to, std::move(done)); });
}

absl::Status DiskFile::Write(uint64_t offset, ByteView from) {
  return WaitFor([&](Callback done) { WriteAsync(offset, from, std::move(done)); });
}

absl::StatusOr<std::unique_ptr<Disk>> OpenDisk(const std::string& directory, DiskEngine engine) {
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<PosixDirectory> opened, PosixDirectory::Open(directory));
  if (!opened->direct_io()) {
    spdlog::warn(
        "{}: its file system refuses O_DIRECT, so reads and writes go through the page cache and cost more "
        "CPU; "
        "use ext4 or XFS for data",
        directory);
  }
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<IoEngine> started, StartEngine(directory, engine));
  return MakePosixDisk(std::move(opened), std::move(started));
}

}  // namespace esker
