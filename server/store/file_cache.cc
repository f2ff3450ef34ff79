#include "server/store/file_cache.h"

#include <utility>

#include "format/base/status.h"
#include "format/segment_header.h"

namespace esker::store {

absl::StatusOr<std::shared_ptr<DiskFile>> FileCache::Get(uint64_t segment_id) {
  MutexLock lock(&mu_);
  if (const auto it = files_.find(segment_id); it != files_.end()) {
    newest_first_.splice(newest_first_.begin(), newest_first_, it->second.age);
    return it->second.file;
  }
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<DiskFile> file,
                         disk_->Open(SegmentFileName(segment_id), Disk::OpenMode::kExisting));
  InsertLocked(segment_id, file);
  return file;
}

void FileCache::Insert(uint64_t segment_id, std::shared_ptr<DiskFile> file) {
  MutexLock lock(&mu_);
  InsertLocked(segment_id, std::move(file));
}

void FileCache::Drop(uint64_t segment_id) {
  MutexLock lock(&mu_);
  const auto it = files_.find(segment_id);
  if (it == files_.end()) return;
  newest_first_.erase(it->second.age);
  files_.erase(it);
}

void FileCache::InsertLocked(uint64_t segment_id, std::shared_ptr<DiskFile> file) {
  newest_first_.push_front(segment_id);
  const bool is_new = files_.try_emplace(segment_id, Entry{std::move(file), newest_first_.begin()}).second;
  ESKER_CHECK(is_new);
  for (auto age = newest_first_.end(); files_.size() > max_open_ && age != newest_first_.begin();) {
    --age;
    const auto oldest = files_.find(*age);
    if (oldest->second.file.use_count() > 1) continue;  // closing it would not free its descriptor
    files_.erase(oldest);
    age = newest_first_.erase(age);
  }
}

}  // namespace esker::store
