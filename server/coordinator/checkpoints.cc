#include "server/coordinator/checkpoints.h"

#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "server/coordinator/requests.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

constexpr size_t kStepsShown = 3;  // at each end

// "1, 2, 3, ..., 98, 99, 100"
std::string DescribeSteps(const std::vector<uint64_t>& steps) {
  if (steps.size() <= 2 * kStepsShown) return absl::StrJoin(steps, ", ");
  const std::vector<uint64_t> first(steps.begin(), steps.begin() + kStepsShown);
  const std::vector<uint64_t> last(steps.end() - kStepsShown, steps.end());
  return StrCat(absl::StrJoin(first, ", "), ", ..., ", absl::StrJoin(last, ", "));
}

v1::GetCheckpointResponse Answer(const v1::GetCheckpointRequest& request, v1::CheckpointRecord record,
                                 const StoredManifest& stored) {
  v1::GetCheckpointResponse response;
  *response.mutable_record() = std::move(record);
  if (request.ranks().empty()) {
    response.set_manifest_envelope(stored.envelope);
    return response;
  }
  *response.mutable_servers() = stored.manifest.servers();
  absl::flat_hash_set<uint32_t> given;
  for (const uint32_t rank : request.ranks()) {
    if (rank >= static_cast<uint32_t>(stored.manifest.parts_size()) || !given.insert(rank).second) continue;
    *response.add_parts() = stored.manifest.parts(static_cast<int>(rank));
  }
  return response;
}

}  // namespace

absl::Status Checkpoints::NotThere(const std::string& run, bool latest, uint64_t step) const {
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> all, records_->Checkpoints(run));
  std::vector<uint64_t> steps;
  std::string deleted;
  for (const StoredCheckpoint& stored : all) {
    if (stored.record.state() == v1::CheckpointRecord::COMMITTED) {
      steps.push_back(stored.record.step());
    } else if (!latest && stored.record.step() == step) {
      deleted = " any more: it was deleted";
    }
  }
  const std::string wanted =
      latest ? StrCat("run ", run, " has no committed checkpoint")
             : StrCat("run ", run, " has no committed checkpoint of step ", step, deleted);
  if (!steps.empty()) {
    return absl::NotFoundError(
        StrCat(wanted, "; it has ", steps.size(), ", of the steps ", DescribeSteps(steps)));
  }
  const size_t under_way = sessions_->Count(run);
  return absl::NotFoundError(
      StrCat(wanted, latest ? "" : ", nor of another step", "; saves under way: ", under_way));
}

absl::StatusOr<StoredCheckpoint> Checkpoints::Require(const std::string& run, bool latest,
                                                      uint64_t step) const {
  ESKER_RETURN_IF_ERROR(runs_->Require(run).status());
  ESKER_ASSIGN_OR_RETURN(StoredCheckpoint stored,
                         latest ? records_->LatestCommitted(run) : records_->Checkpoint(run, step));
  if (stored.record.state() == v1::CheckpointRecord::COMMITTED) return stored;
  return NotThere(run, latest, step);
}

absl::StatusOr<v1::ListCheckpointsResponse> Checkpoints::List(
    const v1::ListCheckpointsRequest& request) const {
  ESKER_RETURN_IF_ERROR(runs_->Require(request.run()).status());
  v1::ListCheckpointsResponse response;
  if (request.all()) {
    // The saves first: one that commits in between is listed twice rather than not at all.
    ESKER_ASSIGN_OR_RETURN(std::vector<StoredSave> saves, records_->Saves(request.run()));
    for (StoredSave& save : saves) {
      v1::SaveStatusEntry* entry = response.add_saves();
      if (const std::optional<SessionView> view = sessions_->View(RefOf(save.record)); view.has_value()) {
        entry->set_reported(view->reported);
        entry->mutable_missing_ranks()->Add(view->missing_ranks.begin(), view->missing_ranks.end());
      }
      *entry->mutable_record() = std::move(save.record);
    }
  }
  ESKER_ASSIGN_OR_RETURN(std::vector<StoredCheckpoint> all, records_->Checkpoints(request.run()));
  for (StoredCheckpoint& stored : all) {
    if (!request.all() && stored.record.state() != v1::CheckpointRecord::COMMITTED) continue;
    *response.add_checkpoints() = std::move(stored.record);
  }
  return response;
}

absl::StatusOr<v1::GetCheckpointResponse> Checkpoints::Get(const v1::GetCheckpointRequest& request) const {
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint stored,
                           Require(request.run(), request.latest(), request.step()));
    const absl::StatusOr<std::shared_ptr<const StoredManifest>> manifest = manifests_->Read(stored.record);
    if (manifest.ok()) return Answer(request, stored.record, **manifest);
    if (!absl::IsNotFound(manifest.status())) return manifest.status();
    // Deleted and collected since it was looked up, or lost.
    ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint now,
                           records_->Checkpoint(request.run(), stored.record.step()));
    if (now.version == stored.version) {
      return absl::DataLossError(
          StrCat(NameOf(RefOf(stored.record)), " is committed, but the store has no manifest of it (",
                 MessageOf(manifest.status()), "); this checkpoint can't be restored, use another"));
    }
  }
  return LostTooManyRaces(StrCat("reading a checkpoint of run ", request.run()));
}

absl::StatusOr<v1::PinCheckpointResponse> Checkpoints::Pin(const v1::PinCheckpointRequest& request) const {
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint stored,
                           Require(request.run(), request.latest(), request.step()));
    v1::CheckpointRecord record = stored.record;
    record.set_pinned(request.pinned());
    record.set_pin_note(request.pinned() ? request.note() : "");
    ESKER_ASSIGN_OR_RETURN(const bool pinned, records_->Apply(CatalogChange().If(stored).Put(record)));
    if (!pinned) continue;
    v1::PinCheckpointResponse response;
    *response.mutable_record() = std::move(record);
    return response;
  }
  return LostTooManyRaces(StrCat("pinning a checkpoint of run ", request.run()));
}

absl::Status Checkpoints::Delete(const v1::DeleteCheckpointRequest& request) const {
  ESKER_RETURN_IF_ERROR(runs_->Require(request.run()).status());
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint stored,
                           records_->Checkpoint(request.run(), request.step()));
    if (!stored.exists()) return NotThere(request.run(), false, request.step());
    if (stored.record.state() == v1::CheckpointRecord::DELETING) return absl::OkStatus();
    const std::string name = NameOf(request.run(), request.step());
    if (stored.record.pinned() && !request.even_if_pinned()) {
      return absl::FailedPreconditionError(StrCat(name, " is pinned (\"", Printable(stored.record.pin_note()),
                                                  "\"); unpin it first, or delete it even if pinned"));
    }
    v1::CheckpointRecord record = stored.record;
    record.set_state(v1::CheckpointRecord::DELETING);
    ESKER_ASSIGN_OR_RETURN(const bool deleted, records_->Apply(CatalogChange().If(stored).Put(record)));
    if (!deleted) continue;
    spdlog::info("{}: deleted on request", name);
    return absl::OkStatus();
  }
  return LostTooManyRaces(StrCat("deleting ", NameOf(request.run(), request.step())));
}

absl::Status Checkpoints::CheckCommitted(const SaveRef& save) const {
  ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint stored, records_->Checkpoint(save.run, save.step));
  const bool same = stored.exists() && stored.record.save_id() == save.save_id;
  if (same && stored.record.state() == v1::CheckpointRecord::COMMITTED) return absl::OkStatus();
  if (same) return absl::NotFoundError(StrCat(NameOf(save), " was deleted; restore another checkpoint"));
  if (stored.record.state() == v1::CheckpointRecord::COMMITTED) {
    return absl::NotFoundError(StrCat(NameOf(save), ": the checkpoint of save ", save.save_id,
                                      " was replaced by attempt ", stored.record.attempt(),
                                      "; ask for the checkpoint again"));
  }
  return NotThere(save.run, false, save.step);
}

}  // namespace esker
