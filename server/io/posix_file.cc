#include "server/io/posix_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker {
namespace {

constexpr char kProbeName[] = ".esker-o-direct-probe";
constexpr mode_t kFileMode = 0640;
// st_blocks counts these, whatever the file system's own blocks are (stat(2)).
constexpr uint64_t kStatBlockBytes = 512;

struct ErrnoMeaning {
  absl::StatusCode code;
  const char* what_to_do;
};

ErrnoMeaning MeaningOf(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return {absl::StatusCode::kResourceExhausted, "free space on the file system or raise the quota"};
    case EFBIG:
      return {absl::StatusCode::kResourceExhausted,
              "raise RLIMIT_FSIZE or use a file system for larger files"};
    case EMFILE:
    case ENFILE:
      return {absl::StatusCode::kResourceExhausted, "raise RLIMIT_NOFILE"};
    case ENOMEM:
      return {absl::StatusCode::kResourceExhausted, "give the process more memory or raise RLIMIT_MEMLOCK"};
    case EIO:
    case ENODATA:    // what the block layer calls a medium error
    case EILSEQ:     // … and a failed protection check
    case EREMOTEIO:  // … and a failed target
    case ENOLINK:    // … and a failed transport
    case EUCLEAN:
    case EBADMSG:
      return {absl::StatusCode::kDataLoss, "look for errors of the device in the kernel's log"};
    case EACCES:
    case EPERM:
      return {absl::StatusCode::kPermissionDenied, "check the owner and mode, or the container's limits"};
    case EROFS:
      return {absl::StatusCode::kPermissionDenied,
              "the file system is read-only: look into the kernel's log"};
    case ENOENT:
      return {absl::StatusCode::kNotFound, "check the name"};
    case EEXIST:
      return {absl::StatusCode::kAlreadyExists, "take another name or remove it"};
    case ENOTDIR:
      return {absl::StatusCode::kFailedPrecondition, "name a directory"};
    case ENOSYS:
    case EOPNOTSUPP:
      return {absl::StatusCode::kUnimplemented, "use ext4 or XFS and a kernel not older than Debian 12's"};
    default:
      return {absl::ErrnoToStatusCode(error), ""};
  }
}

// A name with a slash would leave the directory; the others would be refused by the kernel with less to say.
absl::Status CheckName(std::string_view name, const std::string& directory) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos ||
      name.find('\0') != name.npos) {
    return absl::InvalidArgumentError(absl::StrCat("expected a plain file name in ", directory, ", found '",
                                                   std::string(name), "': give a name without '/'"));
  }
  return absl::OkStatus();
}

template <typename Call>
int RetryWhileInterrupted(Call call) {
  int result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

absl::StatusOr<struct stat> StatOf(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, absl::StrCat("fstat of ", path));
  return info;
}

}  // namespace

absl::Status ErrnoStatus(int error, const std::string& context) {
  const ErrnoMeaning meaning = MeaningOf(error);
  std::array<char, 128> buffer;
  const char* text = ::strerror_r(error, buffer.data(), buffer.size());
  std::string message = absl::StrCat(context, ": ", text, " (errno ", error, ")");
  if (*meaning.what_to_do != '\0') absl::StrAppend(&message, ": ", meaning.what_to_do);
  return absl::Status(meaning.code, message);
}

absl::Status PosixFile::Sync() {
  MutexLock lock(&sync_mu_);
  if (sync_failed_) {
    return absl::DataLossError(absl::StrCat("fdatasync of ", path_,
                                            ": an earlier one failed, so its writes may be lost: give up the "
                                            "file and write its content elsewhere"));
  }
  if (::fdatasync(fd_.get()) != 0) {
    sync_failed_ = true;
    return ErrnoStatus(errno, absl::StrCat("fdatasync of ", path_));
  }
  return absl::OkStatus();
}

absl::Status PosixFile::Allocate(uint64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  const int result =
      RetryWhileInterrupted([&] { return ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(bytes)); });
  if (result != 0) return ErrnoStatus(errno, absl::StrCat("fallocate of ", bytes, " bytes for ", path_));
  return absl::OkStatus();
}

absl::Status PosixFile::PunchHole(uint64_t offset, uint64_t bytes) {
  if (offset % kBlockBytes != 0 || bytes % kBlockBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("expected offset and length of a hole to be multiples of ",
                                                   kBlockBytes, ", found offset ", offset, " and length ",
                                                   bytes, " in ", path_));
  }
  if (bytes == 0) return absl::OkStatus();
  const int result = RetryWhileInterrupted([&] {
    return ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(bytes));
  });
  if (result != 0) {
    return ErrnoStatus(errno, absl::StrCat("hole of ", bytes, " bytes at offset ", offset, " of ", path_));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PosixFile::Size() const {
  ESKER_ASSIGN_OR_RETURN(const struct stat info, StatOf(fd_.get(), path_));
  return static_cast<uint64_t>(info.st_size);
}

absl::StatusOr<uint64_t> PosixFile::AllocatedBytes() const {
  ESKER_ASSIGN_OR_RETURN(const struct stat info, StatOf(fd_.get(), path_));
  return static_cast<uint64_t>(info.st_blocks) * kStatBlockBytes;
}

absl::StatusOr<std::unique_ptr<PosixDirectory>> PosixDirectory::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, absl::StrCat("open of the data directory ", path));
  std::unique_ptr<PosixDirectory> directory(new PosixDirectory(std::move(fd), path));
  ESKER_ASSIGN_OR_RETURN(directory->direct_io_, directory->ProbeDirectIo());
  return directory;
}

// Some file systems refuse O_DIRECT at open, others only at the first write.
absl::StatusOr<bool> PosixDirectory::ProbeDirectIo() const {
  alignas(kBlockBytes) static const std::array<std::byte, kBlockBytes> block{};
  const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT;
  UniqueFd fd(::openat(fd_.get(), kProbeName, flags, kFileMode));
  const int open_error = fd ? 0 : errno;
  bool direct = static_cast<bool>(fd);
  if (fd && ::pwrite(fd.get(), block.data(), block.size(), 0) < 0 && errno == EINVAL) direct = false;
  // Also after an error: open() may refuse O_DIRECT after it made the file.
  const int unlink_error = ::unlinkat(fd_.get(), kProbeName, 0) == 0 ? 0 : errno;
  if (open_error != 0 && open_error != EINVAL) {
    return ErrnoStatus(open_error, absl::StrCat("creating a file in ", path_));
  }
  if (unlink_error != 0 && unlink_error != ENOENT) {
    return ErrnoStatus(unlink_error, absl::StrCat("removing ", path_, "/", kProbeName));
  }
  return direct;
}

absl::StatusOr<std::shared_ptr<PosixFile>> PosixDirectory::OpenFile(std::string_view name,
                                                                    Disk::OpenMode mode) const {
  ESKER_RETURN_IF_ERROR(CheckName(name, path_));
  const std::string file_name(name);
  const std::string path = absl::StrCat(path_, "/", file_name);
  int flags = O_RDWR | O_CLOEXEC;
  if (direct_io_) flags |= O_DIRECT;
  if (mode == Disk::OpenMode::kCreateNew) flags |= O_CREAT | O_EXCL;
  UniqueFd fd(
      RetryWhileInterrupted([&] { return ::openat(fd_.get(), file_name.c_str(), flags, kFileMode); }));
  if (!fd) return ErrnoStatus(errno, absl::StrCat("open of ", path));
  return std::make_shared<PosixFile>(std::move(fd), file_name, path);
}

absl::Status PosixDirectory::Remove(std::string_view name) const {
  ESKER_RETURN_IF_ERROR(CheckName(name, path_));
  const std::string file_name(name);
  if (::unlinkat(fd_.get(), file_name.c_str(), 0) != 0) {
    return ErrnoStatus(errno, absl::StrCat("removing ", path_, "/", file_name));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PosixDirectory::List() const {
  // A descriptor of its own: duplicates share the position, so that two lists at once would miss names.
  const int fd = ::openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("listing ", path_));
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(fd), ::closedir);
  if (stream == nullptr) {
    const int error = errno;
    ::close(fd);
    return ErrnoStatus(error, absl::StrCat("listing ", path_));
  }
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    bool is_file = entry->d_type == DT_REG;
    if (entry->d_type == DT_UNKNOWN) {
      struct stat info;
      if (::fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) continue;  // removed since
        return ErrnoStatus(errno, absl::StrCat("stat of ", path_, "/", entry->d_name));
      }
      is_file = S_ISREG(info.st_mode);
    }
    if (is_file) names.emplace_back(entry->d_name);
  }
  if (errno != 0) return ErrnoStatus(errno, absl::StrCat("listing ", path_));
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status PosixDirectory::Sync() const {
  if (::fsync(fd_.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync of the directory ", path_));
  return absl::OkStatus();
}

absl::StatusOr<DiskSpace> PosixDirectory::Space() const {
  struct statvfs info;
  if (::fstatvfs(fd_.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("statvfs of ", path_));
  return DiskSpace{.total_bytes = info.f_blocks * info.f_frsize,
                   .available_bytes = info.f_bavail * info.f_frsize};
}

}  // namespace esker
