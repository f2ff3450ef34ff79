// How the codec `planes` stores a chunk: decided from a sample of each block, before any work is done.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "format/base/bytes.h"
#include "format/byte_planes.h"
#include "format/dtype.h"

namespace esker {

inline constexpr size_t kMaxPlanes = 8;

// Bytes that are split apart: those of the dtype's element, of a complex number's part, and 1 where
// `raw_bytes` are no whole elements.
size_t PlaneWidth(DType dtype, uint64_t raw_bytes);

// What is tried on a plane. Whatever does not make it smaller is left out in the end.
enum class PlaneEffort : uint8_t {
  kStore,    // noise: not worth a try
  kHuffman,  // the exponents of floats
  kBoth,     // Huffman, and the search for repetitions: full of zeros, or no float's
};

struct PlanePlan {
  PlaneShape shape;
  // For each block, for each of its planes.
  std::vector<std::array<PlaneEffort, kMaxPlanes>> blocks;
  // All of it would shrink by 5%. Else it is best stored as it is.
  bool is_worth_it = false;
};

// Looks at some 2,000 elements of each block of `block_bytes`. A plane whose sample's entropy is more than
// 95% is noise.
PlanePlan PlanPlanes(ByteView raw, DType dtype, size_t block_bytes);

}  // namespace esker
