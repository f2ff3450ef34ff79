// Calls that people make rather than training jobs: used by the CLI. Not part of the public API.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "format/proto/checkpoint.pb.h"
#include "format/proto/service.pb.h"

namespace esker {

// A checkpoint's record and its manifest, which has the digest that the record says.
struct CheckpointManifest {
  v1::CheckpointRecord record;
  v1::Manifest manifest;
};

// Thread-safe. Each call tries to reach the server for `connect_timeout_ms`, and then waits for its answer as
// long as such a call may reasonably take. Errors are the server's, or kUnavailable with the address and what
// to check. `step`: nothing means the latest.
class AdminClient {
 public:
  // Does not connect yet. kInvalidArgument unless `server` is "host:port".
  static absl::StatusOr<std::unique_ptr<AdminClient>> Make(const std::string& server,
                                                           uint64_t connect_timeout_ms);

  absl::StatusOr<v1::ListRunsResponse> ListRuns();
  // `all`: also checkpoints that are being deleted, and saves under way or aborted.
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const std::string& run, bool all);
  absl::StatusOr<CheckpointManifest> GetCheckpoint(const std::string& run, std::optional<uint64_t> step);
  absl::Status DeleteCheckpoint(const std::string& run, uint64_t step, bool even_if_pinned);
  absl::StatusOr<v1::CheckpointRecord> PinCheckpoint(const std::string& run, std::optional<uint64_t> step,
                                                     bool pinned, const std::string& note);
  // Without a policy the run's is removed.
  absl::Status SetRetention(const std::string& run, const std::optional<v1::RetentionPolicy>& policy);
  // An empty run means all; without a policy the runs' own are applied.
  absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(const std::string& run,
                                                            const std::optional<v1::RetentionPolicy>& policy,
                                                            bool dry_run);
  absl::StatusOr<v1::StatusResponse> Status();

  // Has the server read and check every chunk of these ranks' parts (none: all). Calls `progress` for each
  // message, on this thread; if it returns false, the check is broken off with kCancelled. Faults are in the
  // messages: OK means that the check was completed.
  absl::Status VerifyParts(const v1::CheckpointRecord& checkpoint, const std::vector<uint32_t>& ranks,
                           const std::function<bool(const v1::VerifyPartsProgress&)>& progress);

 private:
  AdminClient(std::shared_ptr<Connection> connection, uint64_t connect_timeout_ms)
      : connection_(std::move(connection)), connect_timeout_ms_(connect_timeout_ms) {}

  // A server that can't be reached is given up after connect_timeout_ms; one that answers has `answer_ms`
  // more.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(const char* name,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request, uint64_t answer_ms);
  // Waits until there is a connection.
  absl::Status Reach();

  const std::shared_ptr<Connection> connection_;
  const uint64_t connect_timeout_ms_;
};

}  // namespace esker
