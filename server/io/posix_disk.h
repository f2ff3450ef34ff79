// A Disk on a real directory, whatever engine moves the bytes: names, alignment rules, short reads and writes
// and messages live here; an engine (uring_disk.h, thread_pool_disk.h) only runs IoOps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "format/base/bytes.h"
#include "server/io/disk.h"
#include "server/io/posix_file.h"

namespace esker {

// One read or write on its way through an engine. Not thread-safe: handed from the caller to one engine
// thread. The engine transfers rest() at position() and tells Account() what came of it, until ended(); then
// Finish().
class IoOp {
 public:
  enum class Kind { kRead, kWrite };

  IoOp() = default;
  // A request that is not aligned has ended before it began, with the error.
  IoOp(std::shared_ptr<PosixFile> file, Kind kind, uint64_t offset, MutableBytes memory,
       DiskFile::Callback done);

  bool ended() const { return !status_.ok() || moved_bytes_ == memory_.size(); }
  Kind kind() const { return kind_; }
  int fd() const { return file_->fd(); }
  // What is left to do, never more than one system call can move. A write must not change it.
  MutableBytes rest() const;
  uint64_t position() const { return offset_ + moved_bytes_; }

  // `result` of pread or pwrite (or of io_uring): bytes moved, or a negative errno. Counts whole blocks only,
  // since what is left must stay aligned. An interrupted or refused attempt is counted too, and after many in
  // a row the operation fails (kUnavailable); later ones sleep for a millisecond before they return.
  void Account(int64_t result);

  // Calls `done` and lets go of the file. Once, after ended().
  void Finish();

 private:
  std::string Describe() const;
  void AccountNoProgress(int64_t result);

  std::shared_ptr<PosixFile> file_;  // so that the descriptor outlives the operation
  Kind kind_ = Kind::kRead;
  uint64_t offset_ = 0;
  MutableBytes memory_;
  uint64_t moved_bytes_ = 0;
  int attempts_without_progress_ = 0;
  absl::Status status_;
  DiskFile::Callback done_;
};

// Runs IoOps on threads of its own. Thread-safe. Destroying it waits for all of them, also for those that
// their callbacks submit.
class IoEngine {
 public:
  virtual ~IoEngine() = default;

  // Blocks while too many operations are queued, except on an engine's thread (OnEngineThread).
  virtual void Submit(IoOp op) = 0;
  // See Disk::RegisterMemory.
  virtual void RegisterMemory(MutableBytes memory) = 0;
  // `file_access` says how files are opened, and is put in.
  virtual std::string Describe(const std::string& file_access) const = 0;
};

// Whether this thread belongs to an engine, of any disk. Submit never blocks there: a callback that waited
// for room in a queue could wait for itself, or for a callback of another disk that waits for this one.
bool OnEngineThread();
// Called by each thread of an engine before it runs callbacks.
void MarkEngineThread();

std::unique_ptr<Disk> MakePosixDisk(std::unique_ptr<PosixDirectory> directory,
                                    std::unique_ptr<IoEngine> engine);

}  // namespace esker
