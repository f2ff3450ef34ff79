// What lies around a store's data: the files FORMAT (who it is) and LOCK (who uses it), the folders segments/
// and index/.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace esker::store {

using StoreId = std::array<uint8_t, 16>;

// "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
std::string StoreIdText(const StoreId& id);

// A directory that this process alone may change, until the object is destroyed (or the process dies).
class DataDirectory {
 public:
  // The newest format that this program reads and writes.
  static constexpr uint64_t kFormat = 1;

  // Makes what is missing, durably, and takes the lock. kFailedPrecondition: another process holds it (named
  // by its pid), or a newer Esker wrote it (both versions named). kDataLoss: FORMAT is damaged, or it is gone
  // or the index is gone while segments are there. kPermissionDenied, kResourceExhausted as the system says.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& path);
  ~DataDirectory();
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  const StoreId& store_id() const { return store_id_; }
  // Nothing was here before: no client can know this store.
  bool is_new() const { return is_new_; }
  std::string segments_path() const { return path_ + "/segments"; }
  std::string index_path() const { return path_ + "/index"; }

 private:
  DataDirectory(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}
  absl::Status LoadFormat();
  absl::Status CreateFormat();
  absl::Status CheckNothingIsLost(bool has_format) const;

  const std::string path_;
  const int lock_fd_;
  StoreId store_id_{};
  bool is_new_ = false;
};

}  // namespace esker::store
