// From the caller's state to the bytes of a part: the layout, worked out once for each structure of the
// state, and the copy.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/staging_arena.h"
#include "esker/state.h"
#include "format/base/thread_pool.h"
#include "format/chunk_record.h"
#include "format/dtype.h"
#include "format/hash.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

class DeltaHistory;

// A chunk of the part. In the staging block it lies as the record that it becomes on the disk
// (format/chunk_record.h), so that a server on this host can write it from there: behind room for the header.
struct SnapshotChunk {
  uint64_t part_offset = 0;    // of its first byte, in the part
  uint64_t record_offset = 0;  // of its record, in the block
  uint64_t bytes = 0;
  DType dtype = DType::kBytes;

  uint64_t block_offset() const { return record_offset + PayloadOffset(bytes); }
  uint64_t record_end() const { return record_offset + RecordBytes(bytes); }
};

// What the block of a part of `raw_bytes` should have, whatever its structure: the records' headers and
// padding come on top, and how the save is described (ArenaSave).
uint64_t StagingBytesFor(uint64_t raw_bytes, uint64_t chunk_bytes);

// All of a part that follows from the state's structure: names, types, boxes and their order. Immutable.
struct LayoutPlan {
  std::string envelope;  // of the v1::Layout
  Hash128 digest;
  uint64_t chunk_bytes = 0;
  uint64_t tensor_bytes = 0;             // where the items begin in the part
  std::vector<SnapshotChunk> chunks;     // of the tensors
  std::vector<uint64_t> tensor_offsets;  // in the part, of the state's tensors in their given order
  std::vector<size_t> tensor_order;      // the state's tensors, by their offset in the part
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

// An earlier save of the same layout whose bytes still lie in the block, as they were.
struct SnapshotBase {
  uint64_t records_offset = 0;
  std::vector<SnapshotChunk> chunks;
  std::vector<Hash128> hashes;  // of the chunks; none if the server hashed them itself
};

// A state as it was at one moment. Immutable.
struct Snapshot {
  std::shared_ptr<const LayoutPlan> plan;
  std::shared_ptr<StagingBlock> block;
  uint64_t records_offset = 0;               // where its first record begins, in the block
  std::shared_ptr<const SnapshotBase> base;  // what its chunks may be stored as deltas of; nullptr: nothing
  uint64_t raw_bytes = 0;
  std::vector<uint64_t> item_bytes;  // in the order of the layout
  std::vector<uint64_t> item_chunk_raw_bytes;
  std::vector<SnapshotChunk> chunks;  // of tensors and items

  ByteView bytes(const SnapshotChunk& chunk) const {
    return {block->data() + chunk.block_offset(), chunk.bytes};
  }
  // Where the last record ends, in the block. Behind it there is room for a v1::ArenaSave.
  uint64_t records_end() const { return chunks.empty() ? records_offset : chunks.back().record_end(); }
};

// All of a snapshot but the bytes: its block, and what lies where in it. `deltas`: what this save may be
// stored as deltas of, and where it leaves that alone; nullptr: nothing. kInvalidArgument (a tensor without
// data; more chunks than one part can name), kResourceExhausted (no memory).
absl::StatusOr<Snapshot> PrepareSnapshot(const State& state, std::shared_ptr<const LayoutPlan> plan,
                                         StagingArena* arena, const DeltaHistory* deltas = nullptr);

// Copies the state into a snapshot that was prepared for it, on the pool's threads and the caller's. Calls
// `ready`, on one thread at a time, with the number of chunks, from the first one on, that are complete:
// now and then, kReadySteps times at most, and in the end with all.
inline constexpr uint64_t kReadySteps = 64;
void CopyState(const State& state, const Snapshot& snapshot, ThreadPool* pool,
               const std::function<void(size_t chunks)>& ready);

}  // namespace esker
