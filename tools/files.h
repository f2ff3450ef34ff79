// Files as the commands need them: input mapped into memory, and output that is there whole or not at all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"

namespace esker {

// An error of the C library's, with what was tried: kNotFound, kPermissionDenied, kAlreadyExists,
// kResourceExhausted (disk full), or kInternal.
absl::Status FileError(int error_number, std::string_view what);

// The bytes of a regular file, until Unmap. Empty for an empty file.
absl::StatusOr<ByteView> MapForReading(const std::string& path);
void Unmap(ByteView mapping);

// A new file of fixed size whose bytes are written through memory. The kernel writes them back as it needs
// the memory, so a file may be larger than the machine's memory.
class MappedFile {
 public:
  // Reserves the disk space first: a full disk is kResourceExhausted here, and no signal later.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Create(const std::string& path, uint64_t bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  MutableBytes bytes() { return mapping_; }
  // Durable when it returns.
  absl::Status Sync();

 private:
  MappedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  const std::string path_;
  const int fd_;
  MutableBytes mapping_;  // constant after Create
};

// Writes a small file: durable when it returns, its name only after the directory was synced.
absl::Status WriteFileDurably(const std::string& path, std::string_view bytes);
absl::Status SyncDirectory(const std::string& path);

// A file or a directory of files that is made beside its place, and put there when it is whole: whoever
// looks, whenever, and whatever was killed, sees the old state or the new one. What a killed process leaves
// is a hidden sibling, ".NAME.esker-partial-XXXXXX".
class OutputTarget {
 public:
  enum class Kind { kFile, kDirectory };

  // kAlreadyExists if there is such a file or a directory that is not empty, unless `force`. With `force`, a
  // directory's other files stay, and those of the same names are replaced one by one, in the order in which
  // they were asked for. kNotFound if the parent is missing.
  static absl::StatusOr<std::unique_ptr<OutputTarget>> Create(const std::string& path, Kind kind, bool force);
  // Removes what was not committed.
  ~OutputTarget();
  OutputTarget(const OutputTarget&) = delete;
  OutputTarget& operator=(const OutputTarget&) = delete;

  // Where to write the file `name` of the directory; for kFile, where to write the file itself. `name` is a
  // plain file name.
  std::string StagingPath(const std::string& name);
  // The final path of it, for messages.
  std::string FinalPath(const std::string& name) const;

  // Everything was written and synced: puts it in place, durably. kAlreadyExists if another process was
  // faster; then nothing changed.
  absl::Status Commit();

  // Removes what is staged; from any thread, for a process that was interrupted.
  void RemoveStaging();

 private:
  class Impl;
  explicit OutputTarget(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
