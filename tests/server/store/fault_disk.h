// A Disk in front of a real one, which fails, tears, holds back and counts operations as a test asks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "format/base/mutex.h"
#include "server/io/disk.h"

namespace esker::testing {

enum class DiskOp { kOpen, kCreate, kRemove, kRead, kWrite, kSync, kAllocate, kPunch, kSyncDirectory };

struct DiskEvent {
  DiskOp op;
  std::string file;
  uint64_t offset = 0;
  uint64_t number = 0;  // of the operations of its kind, from 1
};

// What a test holds in its hand while the store owns the disk. Thread-safe; must outlive the disk.
class DiskFaults {
 public:
  // Called before each operation, on the thread that asks for it and under no lock; an error is what the
  // operation returns, undone. May block.
  using Hook = std::function<absl::Status(const DiskEvent&)>;
  void SetHook(Hook hook);
  // The next `count` operations of this kind fail with `status`.
  void FailNext(DiskOp op, int count, absl::Status status);
  // The next write does only its first half, and fails.
  void TearNextWrite();
  // Writes are started, but their ends are held back until Release. HeldWrites blocks until there are so
  // many.
  void HoldWrites();
  void AwaitHeldWrites(size_t count);
  void ReleaseWrites();
  // As many bytes as the disk says are available, whatever it has; and what Allocate finds.
  void SetAvailable(uint64_t bytes);
  uint64_t count(DiskOp op) const;

 private:
  friend class FaultDisk;
  friend class FaultFile;
  absl::Status Before(DiskOp op, const std::string& file, uint64_t offset);
  bool TakeTear();
  // Runs `end` now, or holds it back.
  void EndWrite(std::function<void()> end);
  absl::StatusOr<DiskSpace> Space(absl::StatusOr<DiskSpace> real) const;

  mutable Mutex mu_;
  CondVar held_changed_;
  Hook hook_ ABSL_GUARDED_BY(mu_);
  std::map<DiskOp, uint64_t> counts_ ABSL_GUARDED_BY(mu_);
  std::map<DiskOp, std::pair<int, absl::Status>> failures_ ABSL_GUARDED_BY(mu_);
  bool tear_ ABSL_GUARDED_BY(mu_) = false;
  bool hold_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> held_ ABSL_GUARDED_BY(mu_);
  uint64_t available_bytes_ ABSL_GUARDED_BY(mu_) = UINT64_MAX;
};

// `real` with the faults in front of it.
std::unique_ptr<Disk> MakeFaultDisk(std::unique_ptr<Disk> real, DiskFaults* faults);

}  // namespace esker::testing
