#include "client/delta_history.h"

#include <utility>

#include "client/staging_arena.h"
#include "format/base/bytes.h"

namespace esker {

uint64_t DeltaHistory::BlockBytesFor(uint64_t bytes) { return 2 * RoundUp(bytes, kRecordAlignment); }

void DeltaHistory::Place(Snapshot* snapshot) const {
  const bool has_base = base_ != nullptr && block_.lock() == snapshot->block;
  // Also for a new base: should its save fail, the old one is still there.
  const uint64_t half = snapshot->block->size() / 2 / kRecordAlignment * kRecordAlignment;
  snapshot->records_offset = has_base && base_->records_offset == 0 ? half : 0;
  for (SnapshotChunk& chunk : snapshot->chunks) chunk.record_offset += snapshot->records_offset;
  if (has_base && plan_ == snapshot->plan && !IsTimeForBase()) snapshot->base = base_;
}

void DeltaHistory::Committed(const Snapshot& snapshot, bool is_delta, uint64_t stored_bytes,
                             std::vector<Hash128> hashes) {
  if (!is_delta) {
    block_ = snapshot.block;
    plan_ = snapshot.plan;
    base_ = std::make_shared<SnapshotBase>(
        SnapshotBase{snapshot.records_offset, snapshot.chunks, std::move(hashes)});
    saves_ = 0;
    sum_bytes_ = 0;
  }
  ++saves_;
  sum_bytes_ += stored_bytes;
  last_bytes_ = stored_bytes;
}

}  // namespace esker
