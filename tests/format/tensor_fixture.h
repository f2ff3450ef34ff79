// A small tensor whose elements are known from their index, and shards cut from it: to check that bytes come
// out where they should, element by element.
#pragma once

#include <functional>
#include <random>
#include <vector>

#include "format/box.h"

namespace esker::testing {

inline uint64_t Elements(const std::vector<uint64_t>& shape) { return WholeBox(shape).elements(); }

// Calls `visit` with the index of each element of the box.
inline void ForEachIndex(const Box& box, const std::function<void(const std::vector<uint64_t>&)>& visit) {
  if (box.empty()) return;
  std::vector<uint64_t> index = box.offset;
  while (true) {
    visit(index);
    size_t d = box.rank();
    while (d > 0 && ++index[d - 1] == box.offset[d - 1] + box.extent[d - 1]) {
      index[d - 1] = box.offset[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}

// Where the element lies in the row-major elements of `box`.
inline uint64_t PositionIn(const Box& box, const std::vector<uint64_t>& index) {
  uint64_t position = 0;
  for (size_t d = 0; d < box.rank(); ++d) position = position * box.extent[d] + (index[d] - box.offset[d]);
  return position;
}

inline bool Holds(const Box& box, const std::vector<uint64_t>& index) {
  for (size_t d = 0; d < box.rank(); ++d) {
    if (index[d] < box.offset[d] || index[d] >= box.offset[d] + box.extent[d]) return false;
  }
  return true;
}

// The value of the element, another for each index of a shape.
inline uint32_t ValueAt(const std::vector<uint64_t>& shape, const std::vector<uint64_t>& index) {
  return static_cast<uint32_t>(PositionIn(WholeBox(shape), index) * 2654435761u + 12345);
}

// The row-major values of a box of the tensor.
inline std::vector<uint32_t> ValuesOf(const std::vector<uint64_t>& shape, const Box& box) {
  std::vector<uint32_t> values;
  ForEachIndex(box, [&](const std::vector<uint64_t>& index) { values.push_back(ValueAt(shape, index)); });
  return values;
}

inline std::vector<uint64_t> RandomShape(std::mt19937_64* random, size_t dimensions, uint64_t largest) {
  std::vector<uint64_t> shape;
  for (size_t d = 0; d < dimensions; ++d) shape.push_back(1 + (*random)() % largest);
  return shape;
}

// Any box inside the shape, seldom an empty one.
inline Box RandomBox(std::mt19937_64* random, const std::vector<uint64_t>& shape) {
  Box box;
  for (const uint64_t extent : shape) {
    const uint64_t offset = (*random)() % (extent + 1);
    const uint64_t room = extent - offset;
    box.offset.push_back(offset);
    box.extent.push_back(room == 0 || (*random)() % 50 == 0 ? 0 : 1 + (*random)() % room);
  }
  return box;
}

}  // namespace esker::testing
