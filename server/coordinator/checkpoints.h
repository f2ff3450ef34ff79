// Committed checkpoints: listing, reading, pinning, deleting.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "format/proto/service.pb.h"
#include "server/coordinator/catalog_records.h"
#include "server/coordinator/manifests.h"
#include "server/coordinator/runs.h"
#include "server/coordinator/save_sessions.h"

namespace esker {

// Thread-safe. Requests were checked (requests.h); what each call means, coordinator.h says.
class Checkpoints {
 public:
  // All must outlive this.
  Checkpoints(const CatalogRecords* records, const Runs* runs, const SaveSessions* sessions,
              Manifests* manifests)
      : records_(records), runs_(runs), sessions_(sessions), manifests_(manifests) {}

  absl::StatusOr<v1::ListCheckpointsResponse> List(const v1::ListCheckpointsRequest& request) const;
  absl::StatusOr<v1::GetCheckpointResponse> Get(const v1::GetCheckpointRequest& request) const;
  absl::StatusOr<v1::PinCheckpointResponse> Pin(const v1::PinCheckpointRequest& request) const;
  absl::Status Delete(const v1::DeleteCheckpointRequest& request) const;
  absl::Status CheckCommitted(const SaveRef& save) const;

 private:
  // A record in state COMMITTED; kNotFound says what there is instead.
  absl::StatusOr<StoredCheckpoint> Require(const std::string& run, bool latest, uint64_t step) const;
  absl::Status NotThere(const std::string& run, bool latest, uint64_t step) const;

  const CatalogRecords* const records_;
  const Runs* const runs_;
  const SaveSessions* const sessions_;
  Manifests* const manifests_;
};

}  // namespace esker
