// Which saves are the base of later ones, which are then stored as what changed since (format/delta.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "client/snapshot.h"
#include "format/hash.h"

namespace esker {

// The last base and what the saves since then took. A staging block has two halves: in one lies the base, as
// it was saved, and the saves after it go to the other, each over the one before. Used by one thread at a
// time.
class DeltaHistory {
 public:
  // What a block must have so that a snapshot of `bytes` fits beside its base.
  static uint64_t BlockBytesFor(uint64_t bytes);

  // Moves a snapshot, which was laid out from the block's beginning, to where the base is not, and gives it
  // the base; none if there is none in this block and of this layout, or if it is time for a new one.
  void Place(Snapshot* snapshot) const;

  // That snapshot's save has committed. `is_delta`: as one of its base; if not, it is itself the base of
  // those to come. With it go what it took on the disk, and its chunks' hashes if they are known here.
  void Committed(const Snapshot& snapshot, bool is_delta, uint64_t stored_bytes, std::vector<Hash128> hashes);

 private:
  // Whether a new base makes the saves to come smaller: when the last one took more than the mean since the
  // base, the base included. That is where the mean over all saves has its minimum.
  bool IsTimeForBase() const { return saves_ > 1 && last_bytes_ * saves_ > sum_bytes_; }

  std::weak_ptr<StagingBlock> block_;
  std::shared_ptr<const LayoutPlan> plan_;
  std::shared_ptr<const SnapshotBase> base_;
  uint64_t saves_ = 0;      // since the base, which counts as one
  uint64_t sum_bytes_ = 0;  // what these took
  uint64_t last_bytes_ = 0;
};

}  // namespace esker
