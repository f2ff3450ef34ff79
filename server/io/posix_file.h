// Files and directories by POSIX calls, with every errno as a Status: what the Disk engines share.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/base/unique_fd.h"
#include "server/io/disk.h"

namespace esker {

// The Status of errno `error`, e.g. "write of … : No space left on device (errno 28): free space …".
// No space or quota, too many files: kResourceExhausted. The device failed: kDataLoss. ENOENT: kNotFound.
// EEXIST: kAlreadyExists. Not allowed: kPermissionDenied. Not known to kernel or file system: kUnimplemented.
absl::Status ErrnoStatus(int error, const std::string& context);

// An open file; closed when destroyed. Thread-safe. The calls keep the contracts of the same names in
// DiskFile.
class PosixFile {
 public:
  PosixFile(UniqueFd fd, std::string name, std::string path)
      : fd_(std::move(fd)), name_(std::move(name)), path_(std::move(path)) {}

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }
  // With its directory, for messages.
  const std::string& path() const { return path_; }

  absl::Status Sync();
  absl::Status Allocate(uint64_t bytes);
  absl::Status PunchHole(uint64_t offset, uint64_t bytes);
  absl::StatusOr<uint64_t> Size() const;
  absl::StatusOr<uint64_t> AllocatedBytes() const;

 private:
  const UniqueFd fd_;
  const std::string name_;
  const std::string path_;

  // Held during fdatasync: the kernel reports a lost write to one caller only, so of two at once the other
  // would be told that all is well.
  Mutex sync_mu_;
  bool sync_failed_ ABSL_GUARDED_BY(sync_mu_) = false;
};

// An open directory. Thread-safe. The calls keep the contracts of the same names in Disk.
class PosixDirectory {
 public:
  // The directory must exist and be writable: a file is written and removed to see whether O_DIRECT works
  // there.
  static absl::StatusOr<std::unique_ptr<PosixDirectory>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // Whether OpenFile uses O_DIRECT.
  bool direct_io() const { return direct_io_; }

  absl::StatusOr<std::shared_ptr<PosixFile>> OpenFile(std::string_view name, Disk::OpenMode mode) const;
  absl::Status Remove(std::string_view name) const;
  absl::StatusOr<std::vector<std::string>> List() const;
  absl::Status Sync() const;
  absl::StatusOr<DiskSpace> Space() const;

 private:
  PosixDirectory(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  absl::StatusOr<bool> ProbeDirectIo() const;

  const UniqueFd fd_;
  const std::string path_;
  bool direct_io_ = false;  // constant after Open
};

}  // namespace esker
