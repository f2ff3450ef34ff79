// Removing parts, and the chunks that nothing refers to any more.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/commit_context.h"
#include "server/store/store.h"

namespace esker::store {

struct RemovedParts {
  uint64_t parts = 0;
  uint64_t chunks = 0;
  uint64_t chunk_bytes = 0;  // of their records
  size_t ranks_done = 0;     // of those asked for; the rest is for the next batch
};

// Both on the committer's thread. The space of removed chunks is released, not yet given back
// (SegmentSet::Reclaim).

// Removes these parts of a save in one batch, or the first of them if all would make too large a batch; those
// that are not there are left out. Chunks that are pinned stay with a count of 0. `unpinned` gets chunks
// whose last pin went meanwhile: to be reaped.
absl::StatusOr<RemovedParts> RemoveParts(CommitContext* context, const SaveRef& save,
                                         std::span<const uint32_t> ranks, std::vector<Hash128>* unpinned);

// Removes chunks with a count of 0 whose last pin went. One that is pinned again stays.
absl::Status Reap(CommitContext* context, std::span<const Hash128> hashes);

}  // namespace esker::store
