#include "server/address_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {

absl::StatusOr<std::unique_ptr<AddressFile>> AddressFile::Write(const std::string& directory,
                                                                const std::string& address) {
  const std::string path = StrCat(directory, "/ADDRESS");
  const std::string draft = StrCat(path, ".new");
  const int fd = ::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, StrCat("making ", draft));
  std::unique_ptr<AddressFile> file(new AddressFile(path, fd));
  const std::string line = StrCat(address, "\n");
  // Nothing is synced: after a power loss nobody holds the lock, and the content does not matter.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 ||
      ::write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
      ::rename(draft.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, StrCat("writing ", path));
  }
  return file;
}

AddressFile::AddressFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

AddressFile::~AddressFile() {
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace esker
