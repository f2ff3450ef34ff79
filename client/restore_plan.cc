#include "client/restore_plan.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <tuple>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// Splits off `dimension` and goes on inside the first and the last row, if only a part of them is wanted.
// `at` is the box with the dimensions before narrowed to one row.
void AppendRange(const Box& at, size_t dimension, uint64_t first, uint64_t last, std::vector<Box>* boxes) {
  if (first >= last) return;
  uint64_t row = 1;
  for (size_t d = dimension + 1; d < at.rank(); ++d) row *= at.extent[d];
  if (dimension >= at.rank()) {
    boxes->push_back(at);
    return;
  }
  const auto rows = [&](uint64_t begin, uint64_t count) {
    Box narrowed = at;
    narrowed.offset[dimension] += begin;
    narrowed.extent[dimension] = count;
    return narrowed;
  };
  const uint64_t first_row = first / row;
  const uint64_t last_row = last / row;
  if (first_row == last_row) {
    AppendRange(rows(first_row, 1), dimension + 1, first % row, last % row, boxes);
    return;
  }
  const uint64_t whole_from = first_row + (first % row == 0 ? 0 : 1);
  if (first % row != 0) AppendRange(rows(first_row, 1), dimension + 1, first % row, row, boxes);
  if (whole_from < last_row) boxes->push_back(rows(whole_from, last_row - whole_from));
  if (last % row != 0) AppendRange(rows(last_row, 1), dimension + 1, 0, last % row, boxes);
}

// Where `inner` begins in the row-major elements of `outer`, if it is contiguous there.
std::optional<uint64_t> ContiguousBegin(const Box& outer, const Box& inner) {
  uint64_t begin = 0;
  uint64_t row = 1;
  bool narrowed = false;  // in a dimension further in: then there may be one row only
  for (size_t d = outer.rank(); d-- > 0;) {
    if (narrowed && inner.extent[d] != 1) return std::nullopt;
    if (inner.extent[d] != outer.extent[d]) narrowed = true;
    begin += (inner.offset[d] - outer.offset[d]) * row;
    row *= outer.extent[d];
  }
  return begin;
}

}  // namespace

std::vector<Box> BoxesOfRange(const Box& box, uint64_t first, uint64_t last) {
  std::vector<Box> boxes;
  AppendRange(box, 0, first, last, &boxes);
  return boxes;
}

size_t RestorePlan::AddTarget(RestoreTarget target) {
  total_bytes_ += target.bytes();
  targets_.push_back(std::move(target));
  return targets_.size() - 1;
}

std::vector<Box> RestorePlan::BoxesInChunk(const RestorePiece& piece, uint64_t part_offset,
                                           uint64_t raw_bytes) const {
  const uint64_t element_bytes = targets_[piece.target].element_bytes;
  const uint64_t shard_begin = piece.shard.part_offset;
  const uint64_t shard_end = shard_begin + piece.shard.box.elements() * element_bytes;
  const uint64_t begin = std::max(part_offset, shard_begin);
  const uint64_t end = std::min(part_offset + raw_bytes, shard_end);
  std::vector<Box> boxes;
  if (begin >= end) return boxes;
  // Chunks and shards begin and end at whole elements (ValidateLayout).
  for (Box& box : BoxesOfRange(piece.shard.box, (begin - shard_begin) / element_bytes,
                               (end - shard_begin) / element_bytes)) {
    std::optional<Box> common = Intersect(box, piece.box);
    if (common.has_value()) boxes.push_back(*std::move(common));
  }
  return boxes;
}

void RestorePlan::AddPiece(size_t target, const Box& box, const StoredShard& shard, const PartMap& part) {
  if (box.empty()) return;
  pieces_.push_back({target, box, shard});
  const RestorePiece& piece = pieces_.back();
  // The first and the last of its elements; between them there may be chunks without any.
  const uint64_t element_bytes = targets_[target].element_bytes;
  uint64_t first = 0;
  uint64_t last = 0;
  for (size_t d = 0; d < box.rank(); ++d) {
    first = first * shard.box.extent[d] + (box.offset[d] - shard.box.offset[d]);
    last = last * shard.box.extent[d] + (box.offset[d] - shard.box.offset[d]) + box.extent[d] - 1;
  }
  const size_t first_chunk = part.ChunkAt(shard.part_offset + first * element_bytes);
  const size_t last_chunk = part.ChunkAt(shard.part_offset + last * element_bytes);
  for (size_t i = first_chunk; i <= last_chunk; ++i) {
    const PartChunk& chunk = part.chunks()[i];
    if (BoxesInChunk(piece, chunk.part_offset, chunk.raw_bytes).empty()) continue;
    const auto [entry, is_new] = by_content_.try_emplace({chunk.hash, chunk.raw_bytes}, chunks_.size());
    if (is_new) {
      RestoreChunk& added = chunks_.emplace_back();
      added.hash = chunk.hash;
      added.raw_bytes = chunk.raw_bytes;
      added.rank = shard.rank;
      added.index = i;
    }
    chunks_[entry->second].uses.push_back({pieces_.size() - 1, chunk.part_offset});
  }
}

void RestorePlan::Finish() {
  by_content_.clear();
  std::sort(chunks_.begin(), chunks_.end(), [](const RestoreChunk& a, const RestoreChunk& b) {
    return std::tie(a.rank, a.index) < std::tie(b.rank, b.index);
  });
}

void RestorePlan::ForEachRun(const RestoreChunk& chunk,
                             const std::function<void(uint64_t, std::byte*, uint64_t)>& run) const {
  for (const RestoreChunk::Use& use : chunk.uses) {
    const RestorePiece& piece = pieces_[use.piece];
    const RestoreTarget& target = targets_[piece.target];
    for (const Box& box : BoxesInChunk(piece, use.part_offset, chunk.raw_bytes)) {
      esker::ForEachRun(piece.shard.box, target.box, box, target.element_bytes, [&](const ByteRun& bytes) {
        run(piece.shard.part_offset + bytes.source_offset - use.part_offset,
            target.data + bytes.target_offset, bytes.bytes);
      });
    }
  }
}

std::byte* RestorePlan::WholePlace(const RestoreChunk& chunk) const {
  if (chunk.uses.size() != 1) return nullptr;
  const RestorePiece& piece = pieces_[chunk.uses[0].piece];
  const RestoreTarget& target = targets_[piece.target];
  uint64_t bytes = 0;
  std::byte* place = nullptr;
  // In the chunk's order; together they are one place if each begins where the one before ended.
  for (const Box& box : BoxesInChunk(piece, chunk.uses[0].part_offset, chunk.raw_bytes)) {
    const std::optional<uint64_t> begin = ContiguousBegin(target.box, box);
    if (!begin.has_value()) return nullptr;
    std::byte* at = target.data + *begin * target.element_bytes;
    if (place == nullptr) place = at;
    if (at != place + bytes) return nullptr;
    bytes += box.elements() * target.element_bytes;
  }
  return bytes == chunk.raw_bytes ? place : nullptr;
}

std::string RestorePlan::Describe(const RestoreChunk& chunk) const {
  return StrCat("rank ", chunk.rank, ", ", targets_[pieces_[chunk.uses[0].piece].target].label, ", chunk ",
                chunk.index, " (", chunk.hash.ToHex(), ")");
}

}  // namespace esker
