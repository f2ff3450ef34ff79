// Building, checking and reading a part's layout: which shard lies where, and which chunk holds which bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/box.h"
#include "format/chunk_record.h"
#include "format/dtype.h"
#include "format/hash.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

// The most chunks that a part may have: 64 TiB at the default chunk size.
inline constexpr uint64_t kMaxPartChunks = 1 << 24;

// A shard to be laid out.
struct ShardSpec {
  std::string name;  // ValidateTensorName
  DType dtype;
  std::vector<uint64_t> shape;
  Box box;

  uint64_t bytes() const { return box.elements() * ElementBytes(dtype); }
};

// Lays the shards out by dtype and name, and cuts them into chunks of at most `chunk_bytes` (16 to
// kMaxChunkBytes), at whole elements. A shard of at least `chunk_bytes` takes chunks of its own, so that a
// change of one tensor's size does not shift the others' chunks and frozen tensors dedupe; smaller ones come
// behind those of their dtype and share. Empty shards take no bytes. Independent of the order of `shards` and
// `items`. kInvalidArgument: bad names, boxes outside the tensor, the same name and offset twice, two shapes
// or dtypes of one name, overlapping boxes of one tensor, more than kMaxPartChunks.
absl::StatusOr<v1::Layout> BuildLayout(const std::vector<ShardSpec>& shards,
                                       const std::vector<std::string>& item_names, uint64_t chunk_bytes);

// Checks a layout that came from outside: every field's range, the order, that shards lie inside chunks of
// their dtype and do not overlap in the part. n·log n, whatever it holds. kInvalidArgument says which shard
// or chunk.
absl::Status ValidateLayout(const v1::Layout& layout);

// Checks a part against its (valid) layout: counts and sums. kInvalidArgument.
absl::Status ValidatePart(const v1::Part& part, const v1::Layout& layout);

// How byte items are cut: pieces of at most `chunk_bytes` whose sum is `total`.
std::vector<uint64_t> CutItemChunks(uint64_t total, uint64_t chunk_bytes);

// One chunk of a part.
struct PartChunk {
  Hash128 hash;
  DType dtype = DType::kBytes;
  uint64_t part_offset = 0;  // of its first raw byte
  uint64_t raw_bytes = 0;
};

// A part's chunks in order, and which of them holds a byte. Immutable; thread-safe.
class PartMap {
 public:
  // Both have passed their Validate functions.
  PartMap(const v1::Part& part, const v1::Layout& layout);

  const std::vector<PartChunk>& chunks() const { return chunks_; }
  // The index of the chunk that holds raw byte `part_offset`, by binary search. CHECKs that it lies in the
  // part.
  size_t ChunkAt(uint64_t part_offset) const;

  struct Item {
    std::string name;
    uint64_t part_offset = 0;
    uint64_t bytes = 0;
  };
  const std::vector<Item>& items() const { return items_; }

 private:
  std::vector<PartChunk> chunks_;
  std::vector<Item> items_;
};

}  // namespace esker
