#include "server/coordinator/commit.h"

#include <optional>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/hash.h"
#include "server/coordinator/manifests.h"
#include "server/coordinator/requests.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

using State = SaveStanding::State;

// Sums are for people: they stop at the largest number rather than start again.
uint64_t SaturatingAdd(uint64_t a, uint64_t b) { return a + b < a ? ~uint64_t{0} : a + b; }

v1::CheckpointRecord RecordOf(const v1::Manifest& manifest, const std::string& envelope,
                              int64_t begun_unix_ms) {
  v1::CheckpointRecord record;
  record.set_run(manifest.run());
  record.set_step(manifest.step());
  record.set_attempt(manifest.attempt());
  record.set_save_id(manifest.save_id());
  record.set_world_size(manifest.world_size());
  record.set_state(v1::CheckpointRecord::COMMITTED);
  record.set_begun_unix_ms(begun_unix_ms);
  record.set_committed_unix_ms(manifest.committed_unix_ms());
  record.set_manifest_digest(std::string(HashOf(AsBytes(envelope)).AsText()));
  for (const v1::PartEntry& part : manifest.parts()) {
    record.set_raw_bytes(SaturatingAdd(record.raw_bytes(), part.raw_bytes()));
    record.set_stored_bytes(SaturatingAdd(record.stored_bytes(), part.stored_bytes()));
    record.set_new_stored_bytes(SaturatingAdd(record.new_stored_bytes(), part.new_stored_bytes()));
    record.set_unchanged_bytes(SaturatingAdd(record.unchanged_bytes(), part.unchanged_bytes()));
  }
  return record;
}

absl::Status CheckSameParts(const v1::Manifest& manifest, const CommitWork& work) {
  bool same = manifest.parts_size() == static_cast<int>(work.parts.size());
  for (int rank = 0; same && rank < manifest.parts_size(); ++rank) {
    same = manifest.parts(rank).part_digest() == work.parts[static_cast<size_t>(rank)].part_digest();
  }
  if (same) return absl::OkStatus();
  return absl::AlreadyExistsError(
      StrCat("a manifest of this save, written before the server stopped, names other parts "
             "than the ranks report now; abort the save and begin it again"));
}

}  // namespace

absl::Status SaveCommitter::CommitIfComplete(const SaveRef& save) {
  std::optional<CommitWork> work = sessions_->TakeCommit(save);
  if (!work.has_value()) return absl::OkStatus();
  const absl::StatusOr<SaveStanding> standing = Commit(*work);
  if (!standing.ok()) {
    sessions_->CommitFailed(save);
    return Annotate(standing.status(), StrCat("committing ", NameOf(save)));
  }
  saves_->Ended(save, *standing);
  return absl::OkStatus();
}

absl::StatusOr<SaveStanding> SaveCommitter::Commit(const CommitWork& work) {
  const SaveRef save = RefOf(work.record);
  ESKER_ASSIGN_OR_RETURN(const v1::CheckpointRecord committed, WriteManifest(work));
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(SaveStanding standing, TryOnce(save, committed));
    if (standing.state != State::kSaving) return standing;
  }
  return LostTooManyRaces(StrCat("committing ", NameOf(save)));
}

absl::StatusOr<v1::CheckpointRecord> SaveCommitter::WriteManifest(const CommitWork& work) {
  const SaveRef save = RefOf(work.record);
  // A commit that got no further than this, before a restart or a failure of the catalog, left its manifest.
  absl::StatusOr<std::string> envelope = store_->GetManifest(save);
  if (envelope.ok()) {
    ESKER_ASSIGN_OR_RETURN(const v1::Manifest manifest,
                           DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, *envelope));
    ESKER_RETURN_IF_ERROR(CheckSameParts(manifest, work));
    return RecordOf(manifest, *envelope, work.record.begun_unix_ms());
  }
  if (!absl::IsNotFound(envelope.status())) return envelope.status();
  v1::Manifest manifest = BuildManifest(work, clock_->UnixMillis());
  for (v1::ServerInfo& server : *manifest.mutable_servers()) {
    if (server.id() == store_->id() && !address_.empty()) server.set_address(address_);
  }
  envelope = EncodeEnvelope(EnvelopeKind::kManifest, manifest);
  ESKER_RETURN_IF_ERROR(store_->PutManifest(save, *envelope));
  return RecordOf(manifest, *envelope, work.record.begun_unix_ms());
}

absl::StatusOr<SaveStanding> SaveCommitter::TryOnce(const SaveRef& save,
                                                    const v1::CheckpointRecord& committed) {
  ESKER_ASSIGN_OR_RETURN(const StoredRun run, records_->Run(save.run));
  ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint previous, records_->Checkpoint(save.run, save.step));
  ESKER_ASSIGN_OR_RETURN(SaveStanding standing, saves_->Find(save));
  // Committed also if an earlier try failed after it had reached the catalog.
  if (standing.state != State::kSaving) return standing;
  if (run.record.attempt() != committed.attempt()) {
    return saves_->Abort(save, StrCat("attempt ", run.record.attempt(), " of the run was opened"));
  }
  v1::CheckpointRecord record = committed;
  if (previous.record.state() == v1::CheckpointRecord::COMMITTED) {
    // A pin is on the step: saving it anew does not take it away.
    record.set_pinned(previous.record.pinned());
    record.set_pin_note(previous.record.pin_note());
  }
  // The run's record is among the conditions so that opening a new attempt and committing exclude each other
  // (P4).
  ESKER_ASSIGN_OR_RETURN(
      const bool won,
      records_->Apply(
          CatalogChange().If(run).If(standing.save).If(previous).Put(record).Remove(standing.save)));
  if (!won) return standing;
  spdlog::info("{}: committed by attempt {}: {} ranks, {} bytes, {} of them new", NameOf(save),
               record.attempt(), record.world_size(), record.raw_bytes(), record.new_stored_bytes());
  standing.state = State::kCommitted;
  standing.checkpoint.record = std::move(record);
  return standing;
}

}  // namespace esker
