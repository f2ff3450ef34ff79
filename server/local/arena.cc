#include "server/local/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cstring>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

absl::Status Unfit(std::string_view what) {
  return absl::InvalidArgumentError(StrCat("the arena's descriptor: ", what));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Arena>> Arena::Map(const UniqueFd& memory, uint64_t bytes) {
  if (!memory) return Unfit("there is none");
  struct stat info {};
  struct statfs system {};
  if (::fstat(memory.get(), &info) != 0 || ::fstatfs(memory.get(), &system) != 0) {
    return Unfit(std::strerror(errno));
  }
  // Reserved huge pages may run out at an access; a device or another file system may do anything.
  if (!S_ISREG(info.st_mode) || system.f_type != TMPFS_MAGIC) return Unfit("expected one of memfd_create");
  const int seals = ::fcntl(memory.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return Unfit("expected memory that is sealed against shrinking");
  if (bytes == 0 || bytes > static_cast<uint64_t>(info.st_size)) {
    return Unfit(StrCat("it has ", info.st_size, " bytes, of which ", bytes, " are to be used"));
  }
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (at == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        StrCat("mapping an arena of ", bytes, " bytes: ", std::strerror(errno)));
  }
  // Only advice, for the size of the page tables.
  ::madvise(at, bytes, MADV_HUGEPAGE);
  return std::shared_ptr<const Arena>(new Arena({static_cast<std::byte*>(at), bytes}));
}

Arena::~Arena() { ::munmap(memory_.data(), memory_.size()); }

}  // namespace esker
