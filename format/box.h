// Boxes of a tensor's index space, and how the bytes of one box lie in another.
// Row-major, up to kMaxDimensions.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace esker {

// As many as PyTorch and NumPy allow.
inline constexpr size_t kMaxDimensions = 64;

// The elements x with offset[d] <= x[d] < offset[d] + extent[d]. A scalar has no dimensions and one element.
struct Box {
  std::vector<uint64_t> offset;
  std::vector<uint64_t> extent;

  size_t rank() const { return offset.size(); }
  // Of a box that passed ValidateBox; 1 for a scalar.
  uint64_t elements() const;
  bool empty() const { return elements() == 0; }
  std::string ToString() const;  // "[0:4, 8:16]"

  auto operator<=>(const Box&) const = default;
};

// Whether every element of `inner` is one of `outer`. The same number of dimensions.
bool Contains(const Box& outer, const Box& inner);

// The box of the whole tensor.
Box WholeBox(const std::vector<uint64_t>& shape);

// kInvalidArgument unless the box has the tensor's dimensions (at most kMaxDimensions), lies inside it, and
// the tensor's bytes fit into 63 bits.
absl::Status ValidateBox(const Box& box, const std::vector<uint64_t>& shape, uint64_t element_bytes);

// What both have in common; nothing if that is empty. The same number of dimensions.
std::optional<Box> Intersect(const Box& a, const Box& b);

// `from` without `what`: disjoint, non-empty boxes, at most two a dimension.
std::vector<Box> Subtract(const Box& from, const Box& what);

// A run of bytes to copy, relative to the first byte of each box.
struct ByteRun {
  uint64_t source_offset = 0;
  uint64_t target_offset = 0;
  uint64_t bytes = 0;

  bool operator==(const ByteRun&) const = default;
};

// The runs that bring `part` from the row-major bytes of `source` to those of `target`; CHECKs that both
// contain it. As long as they can be, in the order of both offsets. Calls `run` for each; allocates only a
// few words.
void ForEachRun(const Box& source, const Box& target, const Box& part, uint64_t element_bytes,
                const std::function<void(const ByteRun&)>& run);

}  // namespace esker
