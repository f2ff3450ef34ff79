#include "client/checkpoint_access.h"

#include <utility>

#include "client/checkpoint_metadata.h"
#include "client/checkpoint_reader_impl.h"
#include "client/parallel.h"
#include "client/read_lease.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

// How often a checkpoint may be replaced or deleted between asking for it and taking a lease on it.
constexpr int kOpenTries = 4;
// Up to this world size the whole manifest is fetched at once: then a checkpoint that is deleted while it is
// open can still be read. Beyond that it would cost a large job too much when every rank restores.
constexpr uint32_t kSmallWorld = 256;

absl::StatusOr<v1::GetCheckpointResponse> GetCheckpoint(const CheckpointAccess& access,
                                                        std::optional<uint64_t> step) {
  v1::GetCheckpointRequest request;
  request.set_run(access.run);
  request.set_latest(!step.has_value());
  request.set_step(step.value_or(0));
  request.add_ranks(access.likely_rank);
  return access.connection->CallUntil("GetCheckpoint", &v1::Coordinator::Stub::GetCheckpoint, request,
                                      Deadline::After(access.timeout_ms));
}

}  // namespace

CheckpointInfo ToInfo(const v1::CheckpointRecord& record) {
  CheckpointInfo info;
  info.run = record.run();
  info.step = record.step();
  info.attempt = record.attempt();
  info.world_size = record.world_size();
  info.committed_unix_ms = record.committed_unix_ms();
  info.raw_bytes = record.raw_bytes();
  info.stored_bytes = record.stored_bytes();
  info.new_stored_bytes = record.new_stored_bytes();
  info.unchanged_bytes = record.unchanged_bytes();
  info.pinned = record.pinned();
  return info;
}

absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints(const CheckpointAccess& access) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(access.run));
  v1::ListCheckpointsRequest request;
  request.set_run(access.run);
  ESKER_ASSIGN_OR_RETURN(
      const v1::ListCheckpointsResponse response,
      access.connection->CallUntil("ListCheckpoints", &v1::Coordinator::Stub::ListCheckpoints, request,
                                   Deadline::After(access.timeout_ms)));
  std::vector<CheckpointInfo> checkpoints;
  for (const v1::CheckpointRecord& record : response.checkpoints()) checkpoints.push_back(ToInfo(record));
  return checkpoints;
}

absl::StatusOr<std::optional<uint64_t>> FindLatestStep(const CheckpointAccess& access) {
  const absl::StatusOr<v1::GetCheckpointResponse> response = GetCheckpoint(access, std::nullopt);
  if (absl::IsNotFound(response.status())) return std::nullopt;
  if (!response.ok()) return response.status();
  return response->record().step();
}

absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpointReader(const CheckpointAccess& access,
                                                                       std::optional<uint64_t> step) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(access.run));
  if (step.has_value()) ESKER_RETURN_IF_ERROR(ValidateStep(*step));
  absl::Status lease_error;
  for (int i = 0; i < kOpenTries; ++i) {
    ESKER_ASSIGN_OR_RETURN(const v1::GetCheckpointResponse response, GetCheckpoint(access, step));
    const v1::CheckpointRecord& record = response.record();
    absl::StatusOr<std::unique_ptr<ReadLease>> lease =
        ReadLease::Open(access.connection, record.run(), record.step(), record.save_id(), access.timeout_ms);
    if (!lease.ok()) {
      lease_error = lease.status();
      if (!absl::IsNotFound(lease_error) && !absl::IsFailedPrecondition(lease_error)) return lease_error;
      continue;
    }
    auto metadata = std::make_unique<CheckpointMetadata>(access.connection, record, access.timeout_ms);
    ESKER_RETURN_IF_ERROR(metadata->AddEntries(response));
    if (record.world_size() <= kSmallWorld) {
      const absl::Status loaded = metadata->LoadManifest();
      if (absl::IsFailedPrecondition(loaded) || absl::IsNotFound(loaded)) {
        lease_error = loaded;
        continue;
      }
      ESKER_RETURN_IF_ERROR(loaded);
    }
    return std::make_unique<CheckpointReader>(std::make_unique<CheckpointReader::Impl>(
        access.connection, *std::move(lease), std::move(metadata), access.timeout_ms,
        ThreadsOrDefault(access.threads), access.transport));
  }
  return lease_error;
}

}  // namespace esker
