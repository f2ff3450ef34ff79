// Memory that is there before it is needed, and in huge pages: with small ones, a device gets what it should
// move in many pieces, and moves it at less than half of its speed (docs/design/0002-data-path.md).
#pragma once

#include "format/base/bytes.h"

namespace esker {

inline constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

// Has the memory allocated. What is written there already, or meanwhile, stays. False if the system can't:
// then it is allocated where it is first touched.
bool Populate(MutableBytes memory);

// Puts memory that is populated into huge pages, if it begins and ends at their boundaries: copies it, at
// some seconds per GB, unless it lies in such pages already. Other threads and processes may use it
// meanwhile. False if the system can't do it, or not for all of it just now: pages that a device is reading
// stay where they are.
bool Collapse(MutableBytes memory);

}  // namespace esker
