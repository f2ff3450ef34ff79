// Which stored shards does a wanted box need? A tensor's shards, nested by dimension and sorted by offset,
// answer by binary search: O(dimensions · log shards + answers) for the grids that training makes, never a
// scan of all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/box.h"
#include "format/dtype.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

// One shard as it is stored: where its bytes are.
struct StoredShard {
  Box box;
  uint32_t rank = 0;         // whose part
  uint64_t part_offset = 0;  // where its bytes begin in that part's raw bytes
};

// A piece of a wanted box, and the stored shard to take it from.
struct PlannedRead {
  Box box;                   // the piece: inside the wanted box and inside shard->box
  const StoredShard* shard;  // owned by the index
};

// All shards of one tensor. Immutable once built; thread-safe.
class TensorShards {
 public:
  // The boxes have passed ValidateBox against `shape`.
  TensorShards(DType dtype, std::vector<uint64_t> shape, std::vector<StoredShard> shards);
  ~TensorShards();
  TensorShards(TensorShards&&) noexcept;  // pointers to its shards stay good

  DType dtype() const { return dtype_; }
  const std::vector<uint64_t>& shape() const { return shape_; }
  const std::vector<StoredShard>& shards() const { return shards_; }

  // The shards that share an element with `box`, which has the tensor's dimensions, in no particular order.
  std::vector<const StoredShard*> Overlapping(const Box& box) const;

  // Disjoint pieces that together are `wanted`. Where several ranks hold the same elements, takes them from
  // `preferred_rank` if it is one of them, else from one chosen by preferred_rank, so that many readers
  // spread over the replicas. None for an empty box. kInvalidArgument if `wanted` is not inside the tensor;
  // kDataLoss names what no shard holds.
  absl::StatusOr<std::vector<PlannedRead>> Plan(const Box& wanted, uint32_t preferred_rank) const;

 private:
  struct Group;
  // Shards of one and the same box, sorted by rank: the range [first, last) of shards_.
  struct Replicas {
    size_t first;
    size_t last;
  };

  void BuildLevels();
  void CollectReplicas(const Box& box, size_t level, size_t first, size_t last,
                       std::vector<Replicas>* found) const;
  std::vector<Replicas> OverlappingReplicas(const Box& box) const;
  const StoredShard* HeldBy(const Replicas& replicas, uint32_t rank) const;
  absl::StatusOr<std::vector<PlannedRead>> PlanPieces(const Box& wanted, const std::vector<Replicas>& found,
                                                      uint32_t preferred_rank) const;

  // All constant after construction.
  DType dtype_;
  std::vector<uint64_t> shape_;
  std::vector<StoredShard> shards_;
  size_t stored_ = 0;  // how many of shards_ have elements; the empty ones stand behind
  // levels_[d] holds the groups of dimension d; a group's members are groups of the next level, in the last
  // one shards.
  std::vector<std::vector<Group>> levels_;
};

// The shards of all tensors of a checkpoint (or of those ranks whose layouts were added). Build, then read;
// reading is thread-safe.
class ShardIndex {
 public:
  // Adds what `rank`'s layout holds; it has passed ValidateLayout. kDataLoss if a tensor's dtype or shape
  // differs from what another rank says, naming both ranks; then the index is of no more use.
  absl::Status Add(uint32_t rank, const v1::Layout& layout);
  // To be called once, after the last Add.
  void Finish();

  // nullptr if there is no such tensor.
  const TensorShards* Find(std::string_view name) const;
  // Sorted.
  std::vector<std::string> TensorNames() const;

 private:
  struct Pending {
    DType dtype;
    std::vector<uint64_t> shape;
    uint32_t first_rank;
    std::vector<StoredShard> shards;
  };
  absl::flat_hash_map<std::string, Pending> pending_;
  absl::flat_hash_map<std::string, TensorShards> tensors_;
};

}  // namespace esker
