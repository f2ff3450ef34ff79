#include "format/base/huge_pages.h"

#include <sys/mman.h>

namespace esker {
namespace {

// Of Linux 6.1; glibc's headers may be older.
constexpr int kMadviseCollapse = 25;

}  // namespace

bool Populate(MutableBytes memory) {
  // Only advice, and refused for shared memory unless the system is told otherwise: Collapse does without.
  (void)::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
#ifdef MADV_POPULATE_WRITE
  return ::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0;
#else
  return false;
#endif
}

bool Collapse(MutableBytes memory) { return ::madvise(memory.data(), memory.size(), kMadviseCollapse) == 0; }

}  // namespace esker
