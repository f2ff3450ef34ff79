// Open segment files, at most so many at a time: a large store has more segments than a process may have
// files.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "server/io/disk.h"

namespace esker::store {

// Thread-safe. A file that is in use stays open until its last user lets go.
class FileCache {
 public:
  // `disk` must outlive the cache and every file that it gave out.
  FileCache(Disk* disk, size_t max_open) : disk_(disk), max_open_(max_open) {}

  // The file of a segment, opened if it is not. Errors of Disk::Open.
  absl::StatusOr<std::shared_ptr<DiskFile>> Get(uint64_t segment_id);
  // Adds a file that was just made.
  void Insert(uint64_t segment_id, std::shared_ptr<DiskFile> file);
  void Drop(uint64_t segment_id);

 private:
  struct Entry {
    std::shared_ptr<DiskFile> file;
    std::list<uint64_t>::iterator age;
  };
  void InsertLocked(uint64_t segment_id, std::shared_ptr<DiskFile> file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Disk* const disk_;
  const size_t max_open_;

  // Held while a file is opened. Under it no other lock is taken.
  Mutex mu_;
  absl::flat_hash_map<uint64_t, Entry> files_ ABSL_GUARDED_BY(mu_);
  std::list<uint64_t> newest_first_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker::store
