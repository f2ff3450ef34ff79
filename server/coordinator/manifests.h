// Manifests: how one is made of the ranks' reports, and how it is read back and checked.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"
#include "server/coordinator/save_sessions.h"
#include "server/store/store.h"

namespace esker {

v1::Manifest BuildManifest(const CommitWork& work, int64_t committed_unix_ms);

struct StoredManifest {
  std::string envelope;
  v1::Manifest manifest;
};

// Reads manifests from the store. Keeps the one that was read last, since all ranks of a job ask for the
// same. Thread-safe.
class Manifests {
 public:
  // `store` must outlive this.
  explicit Manifests(Store* store) : store_(store) {}

  // The checkpoint's manifest, checked against the record: kDataLoss if its digest or what it says it belongs
  // to is not the record's. kNotFound if the store has none (it was collected meanwhile, or is lost).
  absl::StatusOr<std::shared_ptr<const StoredManifest>> Read(const v1::CheckpointRecord& record)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  Store* const store_;

  Mutex mu_;  // a leaf
  SaveRef last_save_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const StoredManifest> last_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
