#include "tools/files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// Closes on every way out.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  const int fd_;
};

}  // namespace

absl::Status FileError(int error_number, std::string_view what) {
  const std::string message = StrCat(what, ": ", std::string(std::strerror(error_number)));
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EEXIST:
    case ENOTEMPTY:
      return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    case EISDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<ByteView> MapForReading(const std::string& path) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return FileError(errno, StrCat("opening ", path));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return FileError(errno, StrCat("reading ", path));
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(StrCat(path, " is not a regular file"));
  }
  const auto bytes = static_cast<size_t>(info.st_size);
  if (bytes == 0) return ByteView();
  void* memory = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (memory == MAP_FAILED) return FileError(errno, StrCat("mapping ", path));
  return ByteView(static_cast<const std::byte*>(memory), bytes);
}

void Unmap(ByteView mapping) {
  if (!mapping.empty()) ::munmap(const_cast<std::byte*>(mapping.data()), mapping.size());
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Create(const std::string& path, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return FileError(errno, StrCat("creating ", path));
  std::unique_ptr<MappedFile> file(new MappedFile(path, fd));
  if (bytes == 0) return file;
  if (const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)); error != 0) {
    return FileError(error, StrCat("reserving ", bytes, " bytes for ", path));
  }
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return FileError(errno, StrCat("mapping ", path));
  file->mapping_ = {static_cast<std::byte*>(memory), bytes};
  return file;
}

MappedFile::~MappedFile() {
  Unmap(mapping_);
  ::close(fd_);
}

absl::Status MappedFile::Sync() {
  // fsync alone: it also writes what was changed through the mapping.
  if (::fsync(fd_) != 0) return FileError(errno, StrCat("making ", path_, " durable"));
  return absl::OkStatus();
}

absl::Status WriteFileDurably(const std::string& path, std::string_view bytes) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd.ok()) return FileError(errno, StrCat("creating ", path));
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(errno, StrCat("writing ", path));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  if (::fsync(fd.get()) != 0) return FileError(errno, StrCat("making ", path, " durable"));
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok()) return FileError(errno, StrCat("opening ", path));
  if (::fsync(fd.get()) != 0) return FileError(errno, StrCat("making ", path, " durable"));
  return absl::OkStatus();
}

}  // namespace esker
