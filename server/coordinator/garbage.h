// Garbage collection: applies retention policies, and frees what no live record names (P5).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "format/proto/service.pb.h"
#include "server/coordinator/catalog_records.h"
#include "server/coordinator/runs.h"
#include "server/coordinator/saves.h"
#include "server/store/store.h"

namespace esker {

// How long the records of aborted saves are kept, for people who ask why.
inline constexpr int64_t kKeepAbortedMs = 3'600'000;

// Thread-safe: one collection at a time, others wait. Saves, commits and reads go on meanwhile.
class GarbageCollector {
 public:
  // All must outlive this.
  GarbageCollector(const CatalogRecords* records, const Runs* runs, const Saves* saves, Store* store,
                   const Clock* clock)
      : records_(records), runs_(runs), saves_(saves), store_(store), clock_(clock) {}

  // See Coordinator::CollectGarbage. What fails for one save or run does not stop the others; the first error
  // is returned.
  absl::StatusOr<v1::CollectGarbageResponse> Collect(const v1::CollectGarbageRequest& request)
      ABSL_LOCKS_EXCLUDED(collecting_);

 private:
  class Round;

  const CatalogRecords* const records_;
  const Runs* const runs_;
  const Saves* const saves_;
  Store* const store_;
  const Clock* const clock_;

  // Held over a whole collection. Before all locks of the catalog, the store and the sessions.
  Mutex collecting_;
};

}  // namespace esker
