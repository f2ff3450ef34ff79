// What the committer's work has in its hands.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "format/base/clock.h"
#include "server/store/index.h"
#include "server/store/segment_set.h"
#include "server/store/sessions.h"

namespace esker::store {

// How many there are in the index. Read on any thread.
struct StoreCounts {
  std::atomic<uint64_t> chunks = 0;
  std::atomic<uint64_t> parts = 0;
  std::atomic<uint64_t> layouts = 0;
};

class CommitContext {
 public:
  CommitContext(Index* index, SegmentSet* segments, Sessions* sessions, StoreCounts* counts,
                const Clock* clock)
      : index(index), segments(segments), sessions(sessions), counts(counts), clock(clock) {}

  Index* const index;
  SegmentSet* const segments;
  Sessions* const sessions;
  StoreCounts* const counts;
  const Clock* const clock;

  // Writes the batch; on the committer's thread only. After a failure it may still turn up after a crash, so
  // no space is given back until a write has worked again.
  absl::Status Write(IndexBatch batch);

  // Takes the places of chunks that were written and never indexed back.
  void ReleaseForgotten(const std::vector<WrittenChunk>& chunks);

 private:
  bool write_failed_ = false;
};

}  // namespace esker::store
