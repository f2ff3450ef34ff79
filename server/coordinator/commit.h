// The commit: manifest durable first, then one compare-and-set of the catalog, which makes the checkpoint
// visible.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "server/coordinator/catalog_records.h"
#include "server/coordinator/save_sessions.h"
#include "server/coordinator/saves.h"
#include "server/store/store.h"

namespace esker {

// Thread-safe.
class SaveCommitter {
 public:
  // All must outlive this. `address`: where this server is reached, for manifests; may be empty.
  SaveCommitter(const CatalogRecords* records, Saves* saves, SaveSessions* sessions, Store* store,
                const Clock* clock, std::string address)
      : records_(records),
        saves_(saves),
        sessions_(sessions),
        store_(store),
        clock_(clock),
        address_(std::move(address)) {}

  // If all ranks have reported: commits the save, or finds that it has ended, and tells those who wait. One
  // caller at a time per save; others wait for it. OK also if a rank is missing or there is no session; how
  // the save stands then, the catalog says. After an error the save is as before, unless the catalog failed:
  // then ask it, or call again.
  absl::Status CommitIfComplete(const SaveRef& save);

 private:
  absl::StatusOr<SaveStanding> Commit(const CommitWork& work);
  // One round; how the save stands, which is kSaving only if a race was lost.
  absl::StatusOr<SaveStanding> TryOnce(const SaveRef& save, const v1::CheckpointRecord& committed);
  absl::StatusOr<v1::CheckpointRecord> WriteManifest(const CommitWork& work);

  const CatalogRecords* const records_;
  Saves* const saves_;
  SaveSessions* const sessions_;
  Store* const store_;
  const Clock* const clock_;
  const std::string address_;
};

}  // namespace esker
