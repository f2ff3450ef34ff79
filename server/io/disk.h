// The Disk interface: every byte that a server keeps outside RocksDB goes through it. Implementations: the
// io_uring engine (uring_disk.h) and the thread-pool engine (thread_pool_disk.h), chosen by OpenDisk(). One
// conformance suite (tests/server/io/disk_conformance_test.cc) runs on each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"

namespace esker {

// Memory addresses, file offsets and lengths of reads and writes are multiples of this (O_DIRECT).
inline constexpr uint64_t kBlockBytes = 4096;

// A file of fixed-position reads and writes. Thread-safe. Destroying it closes it as soon as its operations
// under way have ended, without waiting for them; their callbacks are still called.
class DiskFile {
 public:
  // Called once, on one of the engine's threads: must be short and must not wait for another operation of
  // this disk.
  using Callback = std::function<void(absl::Status)>;

  virtual ~DiskFile() = default;

  // Starts to read exactly `to.size()` bytes at `offset`. `to` must live until `done` was called. A read that
  // meets the end of the file is kOutOfRange; a read the device refuses is kDataLoss; a request that is not
  // aligned is kInvalidArgument. May block while too many operations are queued (so hold no lock that a
  // callback takes), but never on an engine's thread: a callback may start further operations. Errors name
  // the file and offset.
  virtual void ReadAsync(uint64_t offset, MutableBytes to, Callback done) = 0;

  // Starts to write all of `from` at `offset`; the same rules. A full disk is kResourceExhausted. When `done`
  // is called with OK the bytes are written but not durable: see Sync.
  virtual void WriteAsync(uint64_t offset, ByteView from, Callback done) = 0;

  // The same, waiting for the end. Not for an engine's thread.
  absl::Status Read(uint64_t offset, MutableBytes to);
  absl::Status Write(uint64_t offset, ByteView from);

  // Blocks until all writes whose `done` was called before are durable (fdatasync). After an error nothing is
  // known of those writes and a second attempt would prove nothing, so every later Sync of this DiskFile
  // fails too (kDataLoss): give up the file.
  virtual absl::Status Sync() = 0;

  // Reserves disk space for [0, bytes) and makes the file at least that long (fallocate). kResourceExhausted
  // where the disk is full.
  virtual absl::Status Allocate(uint64_t bytes) = 0;

  // Gives the space of [offset, offset + bytes) back to the file system; it reads as zeros from then on.
  // Aligned.
  virtual absl::Status PunchHole(uint64_t offset, uint64_t bytes) = 0;

  virtual absl::StatusOr<uint64_t> Size() const = 0;
  // Bytes of disk that the file really takes (st_blocks).
  virtual absl::StatusOr<uint64_t> AllocatedBytes() const = 0;

  virtual const std::string& name() const = 0;
};

// Free and total bytes of the file system, as an unprivileged process sees them.
struct DiskSpace {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
};

// One directory of files. Thread-safe. Files must not outlive their disk.
class Disk {
 public:
  // Waits until every operation has ended and its callback has returned. Not on an engine's thread.
  virtual ~Disk() = default;

  enum class OpenMode {
    kExisting,   // kNotFound where there is none
    kCreateNew,  // kAlreadyExists where there is one. The name is durable only after SyncDirectory
  };
  // `name` is a plain file name in the disk's directory.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Open(std::string_view name, OpenMode mode) = 0;
  // kNotFound where there is none. Durable only after SyncDirectory.
  virtual absl::Status Remove(std::string_view name) = 0;
  // The names of the files, sorted.
  virtual absl::StatusOr<std::vector<std::string>> List() const = 0;
  virtual absl::Status SyncDirectory() = 0;
  virtual absl::StatusOr<DiskSpace> Space() const = 0;

  // Tells the engine that many reads and writes will use [memory]: the io_uring engine registers it with the
  // kernel where RLIMIT_MEMLOCK allows. Never an error: without it the same operations work, a little slower.
  // `memory` must outlive the disk. Call before the first operation, at most once.
  virtual void RegisterMemory(MutableBytes memory) = 0;

  // The engine in one line for logs and `esker status`, e.g. "io_uring (O_DIRECT, depth 32, registered
  // buffers)".
  virtual std::string Describe() const = 0;
};

enum class DiskEngine { kAuto, kUring, kThreadPool };

// Opens `directory` (which must exist and be writable) with the engine asked for. kAuto takes io_uring where
// the kernel allows it, else the thread pool, with a warning in the log that says why. O_DIRECT is left out
// where the file system refuses it (tmpfs), with a warning likewise.
absl::StatusOr<std::unique_ptr<Disk>> OpenDisk(const std::string& directory, DiskEngine engine);

}  // namespace esker
