// Made-up states whose every byte can be told from (seed, tensor name, element), so that any box of a tensor
// can be made, and checked, without keeping the tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "esker/state.h"

namespace esker::testing {

// The box's elements, row-major.
std::vector<std::byte> BoxContent(const TensorBox& box, uint64_t seed);
// A box's elements, row-major: what a test's state consists of.
using Content = std::function<std::vector<std::byte>(const TensorBox& box)>;
// Of a training run of `seed` at `step`: floats like weights, of some of which each step changes the low
// bits, and integers that all change.
Content TrainingContent(uint64_t seed, uint64_t step);
// Made-up bytes.
std::string ItemContent(const std::string& name, uint32_t rank, uint64_t bytes, uint64_t seed);

// A tensor of a job, without its content.
struct GlobalTensor {
  std::string name;
  ElementType type = ElementType::kF32;
  std::vector<uint64_t> shape;
};

// One rank's state with its memory. Movable; the pointers of `state` stay valid.
class RankState {
 public:
  void AddTensor(const TensorBox& box, uint64_t seed);
  void AddTensor(const TensorBox& box, std::vector<std::byte> content);
  void AddItem(const std::string& name, std::string bytes);
  const State& state() const { return state_; }
  uint64_t tensor_bytes() const;

 private:
  State state_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::unique_ptr<std::string>> items_;
};

// Room for boxes to restore, filled with a byte that tells whether something was written.
class RestoreTarget {
 public:
  explicit RestoreTarget(std::vector<TensorBox> boxes);
  std::vector<TargetTensor> tensors();
  // Empty if every box holds what `seed` makes of it, else which one does not.
  std::string Difference(uint64_t seed) const;
  std::string Difference(const Content& content) const;

 private:
  std::vector<TensorBox> boxes_;
  std::vector<std::vector<std::byte>> memory_;
};

// Row shards: each rank's part of the first dimension, as even as it gets; scalars go to rank 0. Empty boxes
// are left out.
std::vector<TensorBox> RowShards(const std::vector<GlobalTensor>& tensors, uint32_t rank, uint32_t ranks);

// Cuts the tensor into random boxes that cover it exactly: a grid with random bounds.
std::vector<TensorBox> RandomGrid(const GlobalTensor& tensor, std::mt19937_64& random);
// Any box inside the tensor, also an empty one.
TensorBox RandomBox(const GlobalTensor& tensor, std::mt19937_64& random);
// A few tensors of random types and shapes: scalars, empty ones, up to four dimensions, and one of some
// megabytes.
std::vector<GlobalTensor> RandomTensors(std::mt19937_64& random);

}  // namespace esker::testing
