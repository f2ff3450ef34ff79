// A copy for memory that the processor won't read again soon: what goes to the disk, or is staged until a
// worker comes to it.
#pragma once

#include <cstddef>

namespace esker {

// As std::memcpy, with non-temporal stores where the processor has them: the target is neither read into the
// caches first nor kept there, which saves a third of the memory traffic of a copy that is larger than they
// are, and leaves them to others. For pieces of a few KiB and more.
void StreamingCopy(void* to, const void* from, size_t bytes);

}  // namespace esker
