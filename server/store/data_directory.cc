#include "server/store/data_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <random>
#include <string_view>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "format/segment_header.h"

namespace esker::store {
namespace {

constexpr std::string_view kFormatWord = "esker-store ";
constexpr std::string_view kIdWord = "id ";
constexpr size_t kMaxFormatFileBytes = 4096;

absl::Status SystemError(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

absl::Status SyncPath(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError(StrCat("opening ", path));
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::fsync(fd) != 0) return SystemError(StrCat("fsync of ", path));
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemError(StrCat("writing ", path));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmallFile(int fd, const std::string& path) {
  std::string text(kMaxFormatFileBytes, '\0');
  const ssize_t length = ::pread(fd, text.data(), text.size(), 0);
  if (length < 0) return SystemError(StrCat("reading ", path));
  text.resize(static_cast<size_t>(length));
  return text;
}

// After a crash the file is there whole, or not at all.
absl::Status WriteFileAtomically(const std::string& directory, const std::string& name,
                                 std::string_view text) {
  const std::string path = StrCat(directory, "/", name);
  const std::string draft = StrCat(path, ".new");
  const int fd = ::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError(StrCat("making ", draft));
  absl::Status status = WriteAll(fd, text, draft);
  if (status.ok() && ::fsync(fd) != 0) status = SystemError(StrCat("fsync of ", draft));
  if (::close(fd) != 0 && status.ok()) status = SystemError(StrCat("closing ", draft));
  ESKER_RETURN_IF_ERROR(status);
  if (::rename(draft.c_str(), path.c_str()) != 0)
    return SystemError(StrCat("renaming ", draft, " to ", path));
  return SyncPath(directory);
}

absl::Status MakeDirectory(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST) return absl::OkStatus();
  return SystemError(StrCat("making the directory ", path));
}

absl::Status MakeDirectoryWithParents(const std::string& path) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(path, error);
  if (error) return absl::ErrnoToStatus(error.value(), StrCat("making the data directory ", path));
  if (!made) return absl::OkStatus();
  return SyncPath(std::filesystem::absolute(path).lexically_normal().parent_path().string());
}

// Whether the directory holds an entry that `wanted` accepts. One that does not exist holds none.
template <typename Predicate>
bool HasEntry(const std::string& path, Predicate wanted) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (wanted(entry.path().filename().string())) return true;
  }
  return false;
}

StoreId RandomId() {
  StoreId id;
  std::random_device random;
  for (uint8_t& byte : id) byte = static_cast<uint8_t>(random());
  id[6] = (id[6] & 0x0f) | 0x40;  // RFC 4122: version 4
  id[8] = (id[8] & 0x3f) | 0x80;
  return id;
}

std::optional<StoreId> ParseId(std::string_view text) {
  std::string digits;
  for (const char c : text) {
    if (absl::ascii_isxdigit(static_cast<unsigned char>(c))) digits += c;
  }
  if (digits.size() != 32) return std::nullopt;
  StoreId id;
  absl::HexStringToBytes(digits).copy(reinterpret_cast<char*>(id.data()), id.size());
  if (StoreIdText(id) != text) return std::nullopt;
  return id;
}

absl::StatusOr<int> TakeLock(const std::string& path) {
  const std::string lock_path = StrCat(path, "/LOCK");
  const int fd = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError(StrCat("opening ", lock_path));
  absl::Cleanup close = [fd] { ::close(fd); };
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return SystemError(StrCat("locking ", lock_path));
    absl::StatusOr<std::string> holder = ReadSmallFile(fd, lock_path);
    return absl::FailedPreconditionError(
        StrCat("the data directory ", path, " is in use by the process with pid ",
               holder.ok() && !holder->empty() ? Printable(FromAbsl(absl::StripAsciiWhitespace(*holder)))
                                               : "unknown",
               ": stop it, or give this server a directory of its own"));
  }
  if (::ftruncate(fd, 0) != 0) return SystemError(StrCat("emptying ", lock_path));
  ESKER_RETURN_IF_ERROR(WriteAll(fd, StrCat(::getpid(), "\n"), lock_path));
  std::move(close).Cancel();
  return fd;
}

}  // namespace

std::string StoreIdText(const StoreId& id) {
  std::string hex = absl::BytesToHexString({reinterpret_cast<const char*>(id.data()), id.size()});
  for (const size_t dash : {8, 13, 18, 23}) hex.insert(dash, 1, '-');
  return hex;
}

DataDirectory::~DataDirectory() { ::close(lock_fd_); }

absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& path) {
  ESKER_RETURN_IF_ERROR(MakeDirectoryWithParents(path));
  ESKER_ASSIGN_OR_RETURN(const int lock_fd, TakeLock(path));
  std::unique_ptr<DataDirectory> directory(new DataDirectory(path, lock_fd));
  ESKER_RETURN_IF_ERROR(directory->LoadFormat());
  ESKER_RETURN_IF_ERROR(MakeDirectory(directory->segments_path()));
  ESKER_RETURN_IF_ERROR(MakeDirectory(directory->index_path()));
  ESKER_RETURN_IF_ERROR(SyncPath(path));
  return directory;
}

absl::Status DataDirectory::LoadFormat() {
  const std::string path = StrCat(path_, "/FORMAT");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno != ENOENT) return SystemError(StrCat("opening ", path));
  ESKER_RETURN_IF_ERROR(CheckNothingIsLost(fd >= 0));
  if (fd < 0) return CreateFormat();
  const absl::Cleanup close = [fd] { ::close(fd); };
  ESKER_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(fd, path));

  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  uint64_t format = 0;
  if (!lines[0].starts_with(kFormatWord) || !absl::SimpleAtoi(lines[0].substr(kFormatWord.size()), &format) ||
      format == 0) {
    return absl::DataLossError(StrCat(path, ": expected \"", kFormatWord, "1\" in the first line, found \"",
                                      Printable(lines[0]), "\": it is damaged, or not Esker's"));
  }
  if (format > kFormat) {
    return absl::FailedPreconditionError(StrCat("the data directory ", path_, " has format ", format,
                                                ", this program knows up to ", kFormat,
                                                ": use the Esker that wrote it, or a newer one"));
  }
  const std::optional<StoreId> id = lines.size() > 1 && lines[1].starts_with(kIdWord)
                                        ? ParseId(lines[1].substr(kIdWord.size()))
                                        : std::nullopt;
  if (!id.has_value()) {
    return absl::DataLossError(StrCat(path, ": expected \"id \" and the store's UUID in the second line"));
  }
  store_id_ = *id;
  return absl::OkStatus();
}

absl::Status DataDirectory::CreateFormat() {
  is_new_ = true;
  store_id_ = RandomId();
  return WriteFileAtomically(path_, "FORMAT",
                             StrCat(kFormatWord, kFormat, "\n", kIdWord, StoreIdText(store_id_), "\n"));
}

// Without FORMAT or index every segment would look unused, and be recycled.
absl::Status DataDirectory::CheckNothingIsLost(bool has_format) const {
  const bool has_segments = HasEntry(
      segments_path(), [](const std::string& name) { return SegmentIdFromFileName(name).has_value(); });
  const bool has_index = HasEntry(index_path(), [](const std::string& name) { return name == "CURRENT"; });
  if (has_index && has_format) return absl::OkStatus();
  if (!has_segments && !has_index) return absl::OkStatus();
  return absl::DataLossError(
      StrCat("the data directory ", path_, " holds ", has_segments ? "segments" : "an index", ", but its ",
             has_format ? "index (index/CURRENT)" : "file FORMAT",
             " is missing: put it back from a backup, or move the directory away to begin anew"));
}

}  // namespace esker::store
