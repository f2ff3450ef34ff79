// Runs and their attempts: the fencing of P4 starts here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/proto/service.pb.h"
#include "server/coordinator/catalog_records.h"

namespace esker {

// A job that restarts more often than this while a rank of an old incarnation sleeps gives that rank a new
// attempt when it asks again; its number of old stays refused.
inline constexpr int kMaxIncarnations = 64;

// OK if `attempt` is the newest of the run. kPermissionDenied if it is an older one, naming both.
absl::Status CheckAttempt(const v1::RunRecord& run, uint64_t attempt);

// Thread-safe.
class Runs {
 public:
  // Both must outlive this.
  Runs(const CatalogRecords* records, const Clock* clock) : records_(records), clock_(clock) {}

  // Makes the run if it is unknown. See Coordinator::OpenRun; the saves of older attempts are the caller's to
  // abort. From its return on no save of an older attempt can commit: the record's version is a condition of
  // each commit.
  absl::StatusOr<uint64_t> Open(const std::string& run, const std::string& incarnation) const;
  // Whether Open would make a new attempt of a run that there is already.
  absl::StatusOr<bool> IsNewIncarnation(const std::string& run, const std::string& incarnation) const;

  // The run's record; kNotFound names runs with similar names.
  absl::StatusOr<StoredRun> Require(const std::string& run) const;
  // Require and CheckAttempt.
  absl::StatusOr<StoredRun> RequireAttempt(const std::string& run, uint64_t attempt) const;

  absl::StatusOr<v1::ListRunsResponse> List() const;
  absl::StatusOr<v1::SetRetentionResponse> SetRetention(const v1::SetRetentionRequest& request) const;

 private:
  const CatalogRecords* const records_;
  const Clock* const clock_;
};

// Those of `known` whose spelling is nearest to `wanted`, at most `count`, nearest first.
std::vector<std::string> NearestNames(const std::string& wanted, std::vector<std::string> known,
                                      size_t count);

}  // namespace esker
