// How `esker save` spreads tensors over ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "esker/state.h"

namespace esker {

// Each rank's tensors. A tensor of at least `ranks` rows is cut along its first dimension, into pieces whose
// rows differ by one at most; the others go whole to the rank that has the fewest bytes, the largest first.
// The pieces' `data` points into that of `tensors`, which are whole tensors (WholeTensor).
std::vector<std::vector<SourceTensor>> SplitOverRanks(const std::vector<SourceTensor>& tensors,
                                                      uint32_t ranks);

}  // namespace esker
