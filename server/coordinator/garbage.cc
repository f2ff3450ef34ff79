#include "server/coordinator/garbage.h"

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "server/coordinator/requests.h"
#include "server/coordinator/retention.h"
#include "spdlog/spdlog.h"

namespace esker {

// One collection.
class GarbageCollector::Round {
 public:
  Round(const GarbageCollector* owner, const v1::CollectGarbageRequest& request)
      : gc_(*owner), request_(request) {}

  absl::StatusOr<v1::CollectGarbageResponse> Run();

 private:
  // What to do with a save that the store holds.
  enum class Fate { kAlive, kRead, kRemove };

  absl::StatusOr<std::vector<StoredRun>> RunsAskedFor() const;
  absl::Status ApplyRetention(const StoredRun& run);
  // Marks one as deleted; false if something else changed it before.
  absl::StatusOr<bool> MarkDeleting(const StoredCheckpoint& stored);
  absl::Status FindDeleting(const StoredRun& run);
  absl::Status RemoveAbortedRecords(const StoredRun& run);

  absl::Status Sweep();
  absl::StatusOr<Fate> Decide(const SaveRef& save) const;
  absl::Status Remove(const SaveRef& save);
  absl::Status RemoveDeletedRecord(const StoredCheckpoint& stored);

  // Goes on after an error; the first one is what the caller gets.
  void Note(const absl::Status& status) {
    if (error_.ok()) error_ = status;
  }

  const GarbageCollector& gc_;
  const v1::CollectGarbageRequest& request_;
  v1::CollectGarbageResponse response_;
  absl::Status error_;
  // By the save they name: the checkpoints in state DELETING; in a dry run also those that would be.
  std::map<SaveRef, StoredCheckpoint> deleting_;
  std::set<SaveRef> left_;  // of the saves that the store holds: those that were not removed
};

absl::StatusOr<v1::CollectGarbageResponse> GarbageCollector::Collect(
    const v1::CollectGarbageRequest& request) {
  MutexLock lock(&collecting_);
  return Round(this, request).Run();
}

absl::StatusOr<v1::CollectGarbageResponse> GarbageCollector::Round::Run() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredRun> runs, RunsAskedFor());
  for (const StoredRun& run : runs) {
    Note(ApplyRetention(run));
    Note(FindDeleting(run));
    if (!request_.dry_run()) Note(RemoveAbortedRecords(run));
  }
  // The records in `deleting_` were read before the store is asked what it holds: what a save had then, it
  // shows now.
  Note(Sweep());
  for (const auto& [save, stored] : deleting_) {
    if (left_.contains(save)) {
      *response_.add_kept_by_reader() = stored.record;
    } else if (!request_.dry_run()) {
      Note(RemoveDeletedRecord(stored));
    }
  }
  ESKER_RETURN_IF_ERROR(error_);
  return std::move(response_);
}

absl::StatusOr<std::vector<StoredRun>> GarbageCollector::Round::RunsAskedFor() const {
  if (request_.run().empty()) return gc_.records_->Runs();
  ESKER_ASSIGN_OR_RETURN(StoredRun run, gc_.runs_->Require(request_.run()));
  std::vector<StoredRun> runs;
  runs.push_back(std::move(run));
  return runs;
}

absl::Status GarbageCollector::Round::ApplyRetention(const StoredRun& run) {
  const v1::RetentionPolicy& policy = request_.has_policy() ? request_.policy() : run.record.retention();
  ESKER_ASSIGN_OR_RETURN(std::vector<StoredCheckpoint> all, gc_.records_->Checkpoints(run.record.run()));
  std::vector<v1::CheckpointRecord> records;
  std::map<uint64_t, StoredCheckpoint*> by_step;
  for (StoredCheckpoint& stored : all) {
    records.push_back(stored.record);
    by_step[stored.record.step()] = &stored;
  }
  for (const v1::CheckpointRecord& expired : ExpiredCheckpoints(policy, records, gc_.clock_->UnixMillis())) {
    StoredCheckpoint* const stored = by_step.at(expired.step());
    // A pin or a new save of the step that came in between wins: the next collection looks at it anew.
    ESKER_ASSIGN_OR_RETURN(const bool marked, request_.dry_run() ? true : MarkDeleting(*stored));
    if (!marked) continue;
    if (request_.dry_run()) deleting_.emplace(RefOf(expired), *stored);
    *response_.add_deleted() = expired;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> GarbageCollector::Round::MarkDeleting(const StoredCheckpoint& stored) {
  v1::CheckpointRecord record = stored.record;
  record.set_state(v1::CheckpointRecord::DELETING);
  ESKER_ASSIGN_OR_RETURN(const bool marked, gc_.records_->Apply(CatalogChange().If(stored).Put(record)));
  if (marked) spdlog::info("{}: deleted by the retention policy", NameOf(RefOf(record)));
  return marked;
}

absl::Status GarbageCollector::Round::FindDeleting(const StoredRun& run) {
  ESKER_ASSIGN_OR_RETURN(std::vector<StoredCheckpoint> all, gc_.records_->Checkpoints(run.record.run()));
  for (StoredCheckpoint& stored : all) {
    if (stored.record.state() != v1::CheckpointRecord::DELETING) continue;
    const SaveRef save = RefOf(stored.record);
    deleting_.emplace(save, std::move(stored));
  }
  return absl::OkStatus();
}

absl::Status GarbageCollector::Round::RemoveAbortedRecords(const StoredRun& run) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredSave> saves, gc_.records_->Saves(run.record.run()));
  for (const StoredSave& save : saves) {
    if (save.record.state() != v1::SaveRecord::ABORTED) continue;
    if (gc_.clock_->UnixMillis() - save.record.ended_unix_ms() < kKeepAbortedMs) continue;
    // Whether it was removed or replaced in between is the same to us.
    ESKER_RETURN_IF_ERROR(gc_.records_->Apply(CatalogChange().If(save).Remove(save)).status());
  }
  return absl::OkStatus();
}

absl::Status GarbageCollector::Round::Sweep() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<SaveRef> held, gc_.store_->ListSaves());
  left_.insert(held.begin(), held.end());
  for (const SaveRef& save : held) {
    if (!request_.run().empty() && save.run != request_.run()) continue;
    const absl::StatusOr<Fate> fate = Decide(save);
    Note(fate.status());
    if (!fate.ok() || *fate != Fate::kRemove) continue;
    if (const absl::Status removed = Remove(save); removed.ok()) {
      left_.erase(save);
    } else {
      Note(Annotate(removed, StrCat("collecting ", NameOf(save), ", save ", save.save_id)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GarbageCollector::Round::Fate> GarbageCollector::Round::Decide(const SaveRef& save) const {
  // The order of these questions is what makes it safe:
  // 1. The store was asked which saves it holds before. A save's record is SAVING before the store gets its
  // first byte.
  // 2. Its SaveRecord, then its CheckpointRecord (Saves::Find). A commit moves the save from the one to the
  // other in one step, so in
  //    the other order both could be missed. What is not alive now never will be: save ids don't come back,
  //    and DELETING never becomes COMMITTED again with the same id.
  // 3. Only then whether somebody reads it. A reader registers first and then checks that the checkpoint is
  // committed: if it is not seen
  //    here, it registered after the question, so it finds that the checkpoint is not committed and reads
  //    nothing.
  ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, gc_.saves_->Find(save));
  const bool would_be_deleted = request_.dry_run() && deleting_.contains(save);
  switch (standing.state) {
    case SaveStanding::State::kSaving:
      return Fate::kAlive;
    case SaveStanding::State::kCommitted:
      if (standing.checkpoint.record.state() == v1::CheckpointRecord::COMMITTED && !would_be_deleted) {
        return Fate::kAlive;
      }
      break;
    case SaveStanding::State::kAborted:
      // Never was committed, so nobody reads it, not even from before a restart.
      return Fate::kRemove;
    case SaveStanding::State::kUnknown:
      break;
  }
  if (gc_.store_->HasReaders(save) || gc_.store_->MayHaveUnknownReaders()) return Fate::kRead;
  if (standing.state == SaveStanding::State::kUnknown) {
    // Runs are never removed. A run that the catalog does not know means that this is not the store's
    // catalog, and then everything would look dead.
    ESKER_ASSIGN_OR_RETURN(const StoredRun run, gc_.records_->Run(save.run));
    if (!run.exists()) {
      return absl::FailedPreconditionError(
          StrCat("the store holds data of run ", save.run,
                 ", which the catalog does not know: nothing of it is removed. "
                 "Has the catalog's directory been lost or mixed up? Restore it from a backup"));
    }
  }
  return Fate::kRemove;
}

absl::Status GarbageCollector::Round::Remove(const SaveRef& save) {
  v1::GarbageReport* const report = response_.mutable_report();
  if (request_.dry_run()) {
    ESKER_ASSIGN_OR_RETURN(const std::vector<uint32_t> ranks, gc_.store_->PartRanks(save));
    report->set_parts_removed(report->parts_removed() + ranks.size());
    return absl::OkStatus();
  }
  ESKER_ASSIGN_OR_RETURN(const RemovedSpace space, gc_.store_->RemoveSave(save));
  report->set_parts_removed(report->parts_removed() + space.parts);
  report->set_chunks_removed(report->chunks_removed() + space.chunks);
  report->set_chunk_bytes_removed(report->chunk_bytes_removed() + space.chunk_bytes);
  report->set_disk_bytes_freed(report->disk_bytes_freed() + space.disk_bytes_freed);
  report->set_segments_recycled(report->segments_recycled() + space.segments_recycled);
  report->set_recycled_bytes(report->recycled_bytes() + space.recycled_bytes);
  spdlog::info("{}: save {} collected: {} parts, {} bytes of chunks", NameOf(save), save.save_id, space.parts,
               space.chunk_bytes);
  return absl::OkStatus();
}

absl::Status GarbageCollector::Round::RemoveDeletedRecord(const StoredCheckpoint& stored) {
  // If the step was saved anew in between, its new record stays.
  return gc_.records_->Apply(CatalogChange().If(stored).Remove(stored)).status();
}

}  // namespace esker
