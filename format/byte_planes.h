// Elements to byte planes and back: plane k holds byte k of each element, so that bytes of a kind (the
// exponents, say) lie together. Elements may be rotated first, so that a float's exponent fills a byte.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "format/base/bytes.h"

namespace esker {

// Elements of `width` bytes, little-endian, each rotated left by `rotation` bits before it is split, and back
// after it is joined.
struct PlaneShape {
  size_t width = 1;
  int rotation = 0;

  bool operator==(const PlaneShape&) const = default;
};

// The shapes that there are: a width of 1, of 2 and 4 with a rotation of 0 or 1, and of 8 with 0 or 4.
bool IsPlaneShape(PlaneShape shape);

// One build of the two loops. `planes` are `shape.width` places of `count` bytes each, the lowest byte first;
// none overlaps another or the elements. No alignment is asked for.
struct BytePlaneKernel {
  std::string_view name;
  void (*split)(PlaneShape shape, const std::byte* elements, size_t count, std::byte* const* planes);
  void (*join)(PlaneShape shape, const std::byte* const* planes, size_t count, std::byte* elements);
};

// What this processor can run: the portable one first, the fastest last. All give the same bytes.
std::span<const BytePlaneKernel> BytePlaneKernels();

// By the fastest one.
void SplitPlanes(PlaneShape shape, const std::byte* elements, size_t count, std::byte* const* planes);
void JoinPlanes(PlaneShape shape, const std::byte* const* planes, size_t count, std::byte* elements);

}  // namespace esker
