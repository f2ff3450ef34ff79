#include "server/coordinator/saves.h"

#include <optional>
#include <random>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "server/coordinator/requests.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

using State = SaveStanding::State;

uint64_t NewSaveId() {
  std::random_device device;
  uint64_t id = 0;
  while (id == 0) id = uint64_t{device()} << 32 | device();
  return id;
}

absl::Status CommittedAlready(const SaveRef& save, uint64_t attempt) {
  return absl::AlreadyExistsError(
      StrCat(NameOf(save), " has been committed by attempt ", attempt, ": there is nothing more to send"));
}

absl::Status UnknownSave(const SaveRef& save) {
  return absl::NotFoundError(
      StrCat(NameOf(save), ": there is no save with the id ", save.save_id,
             "; it was replaced by a later save of this step, or never began. Call BeginSave"));
}

std::string OpenedReason(uint64_t attempt) { return StrCat("attempt ", attempt, " of the run was opened"); }

}  // namespace

absl::StatusOr<v1::SaveStatus> StatusOf(const SaveRef& save, const SaveStanding& standing) {
  v1::SaveStatus status;
  switch (standing.state) {
    case State::kSaving:
      status.set_state(v1::SaveStatus::SAVING);
      status.set_world_size(standing.save.record.world_size());
      return status;
    case State::kAborted:
      status.set_state(v1::SaveStatus::ABORTED);
      status.set_world_size(standing.save.record.world_size());
      status.set_reason(standing.save.record.reason());
      return status;
    case State::kCommitted:
      status.set_state(v1::SaveStatus::COMMITTED);
      status.set_world_size(standing.checkpoint.record.world_size());
      status.set_reported(standing.checkpoint.record.world_size());
      status.set_this_rank_reported(true);
      return status;
    case State::kUnknown:
      break;
  }
  return UnknownSave(save);
}

absl::Status CheckOpen(const SaveRef& save, const SaveStanding& standing) {
  switch (standing.state) {
    case State::kSaving:
      return absl::OkStatus();
    case State::kAborted:
      return absl::AbortedError(
          StrCat("the save of ", NameOf(save), " was aborted: ", standing.save.record.reason()));
    case State::kCommitted:
      return CommittedAlready(save, standing.checkpoint.record.attempt());
    case State::kUnknown:
      break;
  }
  return UnknownSave(save);
}

absl::StatusOr<SaveStanding> Saves::Find(const SaveRef& save) const {
  SaveStanding standing;
  // In this order: a commit moves the save from the one record to the other in one step, so the other order
  // could miss both.
  ESKER_ASSIGN_OR_RETURN(standing.save, records_->Save(save.run, save.step));
  const bool own_record = standing.save.exists() && standing.save.record.save_id() == save.save_id;
  if (own_record && standing.save.record.state() == v1::SaveRecord::SAVING) {
    standing.state = State::kSaving;
    return standing;
  }
  ESKER_ASSIGN_OR_RETURN(standing.checkpoint, records_->Checkpoint(save.run, save.step));
  if (standing.checkpoint.exists() && standing.checkpoint.record.save_id() == save.save_id) {
    standing.state = State::kCommitted;
  } else if (own_record) {
    standing.state = State::kAborted;
  }
  return standing;
}

absl::StatusOr<SaveStanding> Saves::FindFor(const v1::SaveContext& save) const {
  ESKER_ASSIGN_OR_RETURN(SaveStanding standing, Find(RefOf(save)));
  if (standing.state == State::kUnknown) return standing;
  const bool committed = standing.state == State::kCommitted;
  const uint64_t attempt = committed ? standing.checkpoint.record.attempt() : standing.save.record.attempt();
  const uint32_t world_size =
      committed ? standing.checkpoint.record.world_size() : standing.save.record.world_size();
  if (attempt != save.attempt()) {
    return absl::InvalidArgumentError(StrCat("the save ", save.save_id(), " of ", NameOf(RefOf(save)),
                                             " belongs to attempt ", attempt, ", not to attempt ",
                                             save.attempt()));
  }
  ESKER_RETURN_IF_ERROR(Annotate(ValidateRank(save.rank(), world_size), NameOf(RefOf(save))));
  return standing;
}

absl::StatusOr<SaveStanding> Saves::FindForNewest(const v1::SaveContext& save) const {
  ESKER_RETURN_IF_ERROR(runs_->RequireAttempt(save.run(), save.attempt()).status());
  return FindFor(save);
}

absl::StatusOr<uint64_t> Saves::Begin(const v1::BeginSaveRequest& request) {
  std::optional<v1::SaveRecord> record;
  for (int race = 0; !record.has_value(); ++race) {
    if (race == kMaxLostRaces) {
      return LostTooManyRaces(StrCat("saving ", NameOf(request.run(), request.step())));
    }
    ESKER_ASSIGN_OR_RETURN(record, JoinOrBegin(request));
  }
  const SaveRef save = RefOf(*record);
  sessions_->Join(save, request.rank());
  const absl::Status reserved =
      store_->Reserve({save, request.attempt(), request.rank()}, request.raw_bytes());
  if (reserved.ok()) return save.save_id;
  const std::string reason = StrCat("rank ", request.rank(), " got no space: ", MessageOf(reserved));
  if (const absl::StatusOr<SaveStanding> standing = Abort(save, reason, reserved.code()); !standing.ok()) {
    spdlog::warn("{}: not aborted: {}", NameOf(save), standing.status().ToString());
  }
  return reserved;
}

absl::StatusOr<std::optional<v1::SaveRecord>> Saves::JoinOrBegin(const v1::BeginSaveRequest& request) {
  ESKER_ASSIGN_OR_RETURN(const StoredRun run, runs_->RequireAttempt(request.run(), request.attempt()));
  ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint checkpoint,
                         records_->Checkpoint(request.run(), request.step()));
  ESKER_ASSIGN_OR_RETURN(const StoredSave save, records_->Save(request.run(), request.step()));
  if (checkpoint.record.state() == v1::CheckpointRecord::COMMITTED &&
      checkpoint.record.attempt() == request.attempt()) {
    return CommittedAlready(RefOf(checkpoint.record), request.attempt());
  }
  const bool under_way =
      save.record.state() == v1::SaveRecord::SAVING && save.record.attempt() == request.attempt();
  if (!under_way) {
    if (save.record.attempt() == request.attempt()) {
      // Who comes late to a save that was aborted learns of it. Alone it would begin the save anew, and wait
      // for ranks that have gone on.
      ESKER_RETURN_IF_ERROR(sessions_->TellAborted(RefOf(save.record), save.record.reason(), request.rank()));
    }
    return BeginAnew(request, run, save, checkpoint);
  }
  if (save.record.world_size() != request.world_size()) {
    return absl::AlreadyExistsError(StrCat(NameOf(RefOf(save.record)), ": rank ", request.rank(),
                                           " saves with a world size of ", request.world_size(),
                                           ", but the save was begun with ", save.record.world_size(),
                                           "; all ranks of one attempt must agree"));
  }
  ESKER_ASSIGN_OR_RETURN(const bool joined, EnsureSession(save.record));
  if (!joined) return std::nullopt;
  return save.record;
}

absl::StatusOr<std::optional<v1::SaveRecord>> Saves::BeginAnew(const v1::BeginSaveRequest& request,
                                                               const StoredRun& run,
                                                               const StoredSave& replaced,
                                                               const StoredCheckpoint& checkpoint) {
  if (sessions_->Count(request.run()) >= kMaxOpenSavesPerRun) {
    return absl::ResourceExhaustedError(
        StrCat("run ", request.run(), ": ", kMaxOpenSavesPerRun,
               " saves are under way, the most that there may be; wait for one to end, "
               "or abort it"));
  }
  v1::SaveRecord record;
  record.set_run(request.run());
  record.set_step(request.step());
  record.set_attempt(request.attempt());
  record.set_save_id(NewSaveId());
  record.set_world_size(request.world_size());
  record.set_state(v1::SaveRecord::SAVING);
  record.set_begun_unix_ms(clock_->UnixMillis());
  const absl::StatusOr<bool> begun =
      records_->Apply(CatalogChange().If(run).If(replaced).If(checkpoint).Put(record));
  if (!begun.ok()) {
    in_doubt_ = true;
    return begun.status();
  }
  if (!*begun) return std::nullopt;
  // It may have been aborted again by now; the rank learns of it when it sends something.
  ESKER_RETURN_IF_ERROR(EnsureSession(record).status());
  if (replaced.exists()) {
    const std::string reason = replaced.record.state() == v1::SaveRecord::SAVING
                                   ? OpenedReason(run.record.attempt())
                                   : replaced.record.reason();
    sessions_->End(RefOf(replaced.record), v1::SaveStatus::ABORTED, reason);
    store_->EndSave(RefOf(replaced.record));
  }
  return record;
}

absl::StatusOr<SaveStanding> Saves::Abort(const SaveRef& save, const std::string& reason,
                                          absl::StatusCode code) {
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(SaveStanding standing, Find(save));
    if (standing.state == State::kSaving) {
      v1::SaveRecord record = standing.save.record;
      record.set_state(v1::SaveRecord::ABORTED);
      record.set_reason(ReasonFrom(reason));
      record.set_ended_unix_ms(clock_->UnixMillis());
      ESKER_ASSIGN_OR_RETURN(const bool aborted,
                             records_->Apply(CatalogChange().If(standing.save).Put(record)));
      if (!aborted) continue;
      spdlog::info("{}: save aborted: {}", NameOf(save), record.reason());
      standing.state = State::kAborted;
      standing.save.record = record;
    }
    Ended(save, standing, code);
    return standing;
  }
  return LostTooManyRaces(StrCat("aborting the save of ", NameOf(save)));
}

absl::Status Saves::AbortOlder(const std::string& run, uint64_t attempt) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredSave> saves, records_->Saves(run));
  for (const StoredSave& save : saves) {
    if (save.record.state() != v1::SaveRecord::SAVING || save.record.attempt() >= attempt) continue;
    ESKER_RETURN_IF_ERROR(Abort(RefOf(save.record), OpenedReason(attempt)).status());
  }
  return absl::OkStatus();
}

void Saves::Ended(const SaveRef& save, const SaveStanding& standing, absl::StatusCode code) {
  const absl::StatusOr<v1::SaveStatus> status = StatusOf(save, standing);
  if (status.ok()) {
    sessions_->End(save, status->state(), status->reason(), code);
  } else {
    sessions_->End(save, v1::SaveStatus::ABORTED, "it was replaced by a later save of this step");
  }
  store_->EndSave(save);
}

absl::StatusOr<bool> Saves::EnsureSession(const v1::SaveRecord& record) {
  const SaveRef save = RefOf(record);
  if (!sessions_->Open(record)) return true;
  // Who ends a save changes the catalog first and ends the session then. That may have been before this
  // session was made: so look again.
  const absl::StatusOr<SaveStanding> standing = Find(save);
  if (!standing.ok()) return standing.status();
  if (standing->state == State::kSaving) return true;
  Ended(save, *standing);
  return false;
}

absl::Status Saves::LoadOpen() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredRun> runs, records_->Runs());
  for (const StoredRun& run : runs) {
    ESKER_ASSIGN_OR_RETURN(const std::vector<StoredSave> saves, records_->Saves(run.record.run()));
    for (const StoredSave& save : saves) {
      if (save.record.state() != v1::SaveRecord::SAVING) continue;
      ESKER_RETURN_IF_ERROR(EnsureSession(save.record).status());
    }
  }
  return absl::OkStatus();
}

absl::Status Saves::LoadOpenIfInDoubt() {
  if (!in_doubt_.exchange(false)) return absl::OkStatus();
  const absl::Status loaded = LoadOpen();
  if (!loaded.ok()) in_doubt_ = true;
  return loaded;
}

}  // namespace esker
