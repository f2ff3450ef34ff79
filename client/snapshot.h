// From the caller's state to the bytes of a part: the layout, worked out once for each structure of the
// state, and the copy.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/staging_arena.h"
#include "esker/state.h"
#include "format/base/thread_pool.h"
#include "format/dtype.h"
#include "format/hash.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

// A chunk of the part: a span of the staging block.
struct SnapshotChunk {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  DType dtype = DType::kBytes;
};

// All of a part that follows from the state's structure: names, types, boxes and their order. Immutable.
struct LayoutPlan {
  std::string envelope;  // of the v1::Layout
  Hash128 digest;
  uint64_t chunk_bytes = 0;
  uint64_t tensor_bytes = 0;             // where the items begin in the part
  std::vector<SnapshotChunk> chunks;     // of the tensors
  std::vector<uint64_t> tensor_offsets;  // in the part, of the state's tensors in their given order
  std::vector<size_t> item_order;        // the state's items, in the order of the layout

  // The structure that it was made for.
  std::vector<TensorBox> boxes;
  std::vector<std::string> item_names;
};

// kInvalidArgument says which tensor or item is wrong, and why.
absl::StatusOr<std::shared_ptr<const LayoutPlan>> MakeLayoutPlan(const State& state, uint64_t chunk_bytes);

// Whether the plan is this state's: a comparison, without building anything.
bool PlanFits(const LayoutPlan& plan, const State& state);

// Keeps the last plan, and gives it again as long as it fits. Used by one thread at a time.
class LayoutCache {
 public:
  explicit LayoutCache(uint64_t chunk_bytes) : chunk_bytes_(chunk_bytes) {}

  // As MakeLayoutPlan.
  absl::StatusOr<std::shared_ptr<const LayoutPlan>> Get(const State& state);

 private:
  const uint64_t chunk_bytes_;
  std::shared_ptr<const LayoutPlan> plan_;
};

// A state as it was at one moment. Immutable; its bytes are those of the part.
struct Snapshot {
  std::shared_ptr<const LayoutPlan> plan;
  std::shared_ptr<StagingBlock> block;
  uint64_t raw_bytes = 0;
  std::vector<uint64_t> item_bytes;  // in the order of the layout
  std::vector<uint64_t> item_chunk_raw_bytes;
  std::vector<SnapshotChunk> chunks;  // of tensors and items

  ByteView bytes(const SnapshotChunk& chunk) const { return {block->data() + chunk.offset, chunk.bytes}; }
};

// Copies the state into the arena, on the pool's threads and the caller's. kInvalidArgument (a tensor without
// data; more chunks than one part can name), kResourceExhausted (no memory).
absl::StatusOr<Snapshot> TakeSnapshot(const State& state, std::shared_ptr<const LayoutPlan> plan,
                                      StagingArena* arena, ThreadPool* pool);

}  // namespace esker
