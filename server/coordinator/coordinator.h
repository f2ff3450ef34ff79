// Gathers the ranks' reports of each save and commits it with one compare-and-set of the catalog; opens runs
// (attempts), lists, pins, deletes, and collects garbage. Keeps nothing in memory that the ranks can't send
// again. The rpc/ adapters call it.
//
// Whether a part is alive (it must not be collected) follows from the catalog alone: its save id is that of
// the step's SaveRecord in state SAVING, or that of the step's CheckpointRecord in state COMMITTED.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/proto/service.pb.h"
#include "server/catalog/catalog.h"
#include "server/store/store.h"

namespace esker {

struct CoordinatorOptions {
  // A save to which no rank sent a byte or a report for so long is aborted.
  uint64_t save_timeout_ms = 300'000;
  // How often retention policies are applied and garbage is collected without being asked; 0: never.
  uint64_t gc_interval_ms = 60'000;
  // How the server is reached, for the manifest ("host:port").
  std::string address;
  const Clock* clock = SystemClock();
};

// Thread-safe. Requests are checked here (names, numbers, limits), so that every way in is. All calls but
// WaitSave answer soon; they may block on RocksDB. Errors: kInvalidArgument (bad request), kNotFound (unknown
// run, step or save), kPermissionDenied (an older attempt: P4), kAlreadyExists (contradiction: names both),
// kFailedPrecondition, kAborted (the save has ended: says why), kResourceExhausted (disk nearly full: gives
// the figures).
class Coordinator {
 public:
  // Starts the background thread (expiry, retention). Both must outlive the coordinator.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(const CoordinatorOptions& options,
                                                            Catalog* catalog, Store* store);
  // Answers every WaitSave that is open with kUnavailable, stops the background thread.
  ~Coordinator();

  // A new incarnation gets the next attempt; the newest one asking again gets the same (so every rank calls
  // it); an older one is refused with kPermissionDenied. Opening a new attempt aborts the saves of older
  // ones; so it is refused for a while (kUnavailable: try again) as long as HoldSave holds one of them.
  absl::StatusOr<v1::OpenRunResponse> OpenRun(const v1::OpenRunRequest& request);

  // A rank's part of a save of `run` is in this server's own hands, which needs nothing more of the rank
  // (server/local). Until the result is dropped, before the coordinator ends.
  std::shared_ptr<const void> HoldSave(const std::string& run);

  // Joins the save of (run, step, attempt), beginning it if this is the first rank. A committed step may be
  // saved again by a newer attempt (the old checkpoint stays until the new one commits); by the same attempt
  // it is kAlreadyExists. Reserves the rank's space; if that fails the save is aborted, so that no other rank
  // waits for it. An aborted save is begun anew, except by a rank that had not joined it yet: such a rank is
  // told once that it was aborted (kAborted, or kResourceExhausted).
  absl::StatusOr<v1::BeginSaveResponse> BeginSave(const v1::BeginSaveRequest& request);

  // Takes a rank's report of its sealed part; with the last one in, commits before it answers. The same
  // report again is answered alike; a different one is kAlreadyExists.
  absl::StatusOr<v1::ReportPartResponse> ReportPart(const v1::ReportPartRequest& request);

  // Calls `done` once: when the save ends, or after the timeout, with how far it is. Never waits itself; it
  // may call `done` before it returns. kPermissionDenied for an older attempt, unless its save is over: then
  // it is told how it ended.
  void WaitSave(const v1::WaitSaveRequest& request, std::function<void(absl::StatusOr<v1::SaveStatus>)> done);

  absl::StatusOr<v1::AbortSaveResponse> AbortSave(const v1::AbortSaveRequest& request);

  // kOk if this save is under way for this attempt: what storage calls check before they take bytes.
  // kAlreadyExists if it is committed, as AbortSave answers too.
  absl::Status CheckSaveOpen(const v1::SaveContext& save);
  // kOk if the checkpoint is committed with this save id: what OpenRead checks after registering its lease.
  absl::Status CheckCommitted(const SaveRef& save);

  absl::StatusOr<v1::ListRunsResponse> ListRuns(const v1::ListRunsRequest& request);
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const v1::ListCheckpointsRequest& request);
  absl::StatusOr<v1::GetCheckpointResponse> GetCheckpoint(const v1::GetCheckpointRequest& request);
  absl::StatusOr<v1::DeleteCheckpointResponse> DeleteCheckpoint(const v1::DeleteCheckpointRequest& request);
  absl::StatusOr<v1::PinCheckpointResponse> PinCheckpoint(const v1::PinCheckpointRequest& request);
  absl::StatusOr<v1::SetRetentionResponse> SetRetention(const v1::SetRetentionRequest& request);
  absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(const v1::CollectGarbageRequest& request);

  // One round of what the background thread does: expiry, waits that ran out, and, if it is time, retention
  // and collection. For tests with a clock of their own.
  void Tick();

 private:
  class Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
