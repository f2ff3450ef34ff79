// Which chunks a restore reads, and where their bytes go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "format/base/bytes.h"
#include "format/hash.h"
#include "format/layout.h"
#include "format/shard_index.h"

namespace esker {

// Where a wanted box's bytes go.
struct RestoreTarget {
  std::string label;  // for messages: tensor "w"
  Box box;
  uint64_t element_bytes = 1;
  std::byte* data = nullptr;

  uint64_t bytes() const { return box.elements() * element_bytes; }
};

// A piece of a target, and the stored shard that it is taken from.
struct RestorePiece {
  size_t target = 0;
  Box box;
  StoredShard shard;
};

// A chunk to be fetched. Chunks of the same content are one, whoever stored them.
struct RestoreChunk {
  // A piece that takes bytes of it, and where the chunk lies in that piece's part.
  struct Use {
    size_t piece = 0;
    uint64_t part_offset = 0;
  };

  Hash128 hash;
  uint64_t raw_bytes = 0;
  uint32_t rank = 0;  // of the first use's part
  size_t index = 0;   // in it
  std::vector<Use> uses;
};

// The elements [first, last) of a box, in row-major order, as disjoint boxes: less than two a dimension.
std::vector<Box> BoxesOfRange(const Box& box, uint64_t first, uint64_t last);

// Add, then Finish, then read; reading is thread-safe.
class RestorePlan {
 public:
  // Returns the target's number.
  size_t AddTarget(RestoreTarget target);
  // `part` is that of the shard's rank. Finds the chunks that hold bytes of the piece: none other is fetched.
  void AddPiece(size_t target, const Box& box, const StoredShard& shard, const PartMap& part);
  // Sorts the chunks as they lie in the parts, so that they are read in that order.
  void Finish();

  const std::vector<RestoreTarget>& targets() const { return targets_; }
  const std::vector<RestoreChunk>& chunks() const { return chunks_; }
  // Sum of the targets.
  uint64_t total_bytes() const { return total_bytes_; }

  // Calls `run` for each run of bytes from the chunk to a target: offset in the chunk, where to, how many.
  void ForEachRun(const RestoreChunk& chunk,
                  const std::function<void(uint64_t, std::byte*, uint64_t)>& run) const;
  // Where the whole chunk goes, if that is one contiguous place; else nullptr.
  std::byte* WholePlace(const RestoreChunk& chunk) const;
  // "tensor "w", chunk 17 (hash) of rank 3's part".
  std::string Describe(const RestoreChunk& chunk) const;

 private:
  // What of a piece lies in the chunk at part_offset.
  std::vector<Box> BoxesInChunk(const RestorePiece& piece, uint64_t part_offset, uint64_t raw_bytes) const;

  std::vector<RestoreTarget> targets_;
  std::vector<RestorePiece> pieces_;
  std::vector<RestoreChunk> chunks_;
  absl::flat_hash_map<std::pair<Hash128, uint64_t>, size_t>
      by_content_;  // hash and length; empty after Finish
  uint64_t total_bytes_ = 0;
};

}  // namespace esker
