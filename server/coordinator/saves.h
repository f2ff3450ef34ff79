// A save's life in the catalog: it begins, and it ends by the commit (commit.h) or here, by an abort.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/proto/service.pb.h"
#include "server/coordinator/catalog_records.h"
#include "server/coordinator/runs.h"
#include "server/coordinator/save_sessions.h"
#include "server/store/store.h"

namespace esker {

// The saves of one run that may be under way at a time: each takes memory here and promised space on the
// disk.
inline constexpr size_t kMaxOpenSavesPerRun = 64;

// How a save stands, by the catalog. All states but kSaving are final.
struct SaveStanding {
  enum class State {
    kSaving,     // `save` is its record
    kCommitted,  // `checkpoint` is its record; it may be DELETING by now
    kAborted,    // `save` is its record
    kUnknown,  // no record has its id: it never was, was replaced by a later save of the step, or was cleared
               // away
  };
  State state = State::kUnknown;
  StoredSave save;
  StoredCheckpoint checkpoint;
};

// As WaitSave answers for a save without a session. `this_rank_reported` is not set unless it is committed.
absl::StatusOr<v1::SaveStatus> StatusOf(const SaveRef& save, const SaveStanding& standing);

// OK if the save is under way: otherwise kAborted with the reason, kAlreadyExists (it is committed) or
// kNotFound.
absl::Status CheckOpen(const SaveRef& save, const SaveStanding& standing);

// Thread-safe.
class Saves {
 public:
  // All must outlive this.
  Saves(const CatalogRecords* records, const Runs* runs, SaveSessions* sessions, Store* store,
        const Clock* clock)
      : records_(records), runs_(runs), sessions_(sessions), store_(store), clock_(clock) {}

  // Joins the save or begins it, and reserves the rank's space. Returns the save id. See
  // Coordinator::BeginSave.
  absl::StatusOr<uint64_t> Begin(const v1::BeginSaveRequest& request);

  absl::StatusOr<SaveStanding> Find(const SaveRef& save) const;
  // Find, and that the context's attempt and rank are the save's own: kInvalidArgument.
  absl::StatusOr<SaveStanding> FindFor(const v1::SaveContext& save) const;
  // FindFor, if the context's attempt is the run's newest: kPermissionDenied.
  absl::StatusOr<SaveStanding> FindForNewest(
      const v1::SaveContext& save) const;  // Ends the save if it is under way; `reason` is for people, `code`
                                           // for ranks that come too late. Returns how it stands then.
  absl::StatusOr<SaveStanding> Abort(const SaveRef& save, const std::string& reason,
                                     absl::StatusCode code = absl::StatusCode::kAborted);
  // Aborts the run's saves of attempts before `attempt`.
  absl::Status AbortOlder(const std::string& run, uint64_t attempt);

  // After the catalog said that the save has ended: tells those who wait, and the store.
  void Ended(const SaveRef& save, const SaveStanding& standing,
             absl::StatusCode code =
                 absl::StatusCode::kAborted);  // Makes sure that the save has a session, if it is still under
                                               // way, of which `record` was read: whether it is.
  absl::StatusOr<bool> EnsureSession(const v1::SaveRecord& record);

  // Makes sessions for all saves that the catalog says are under way.
  absl::Status LoadOpen();
  // The same, if a save may have been begun without the caller learning of it (the catalog failed in the
  // middle).
  absl::Status LoadOpenIfInDoubt();

 private:
  // One round of joining or beginning; nullopt if it lost a race.
  absl::StatusOr<std::optional<v1::SaveRecord>> JoinOrBegin(const v1::BeginSaveRequest& request);
  absl::StatusOr<std::optional<v1::SaveRecord>> BeginAnew(const v1::BeginSaveRequest& request,
                                                          const StoredRun& run, const StoredSave& replaced,
                                                          const StoredCheckpoint& checkpoint);

  const CatalogRecords* const records_;
  const Runs* const runs_;
  SaveSessions* const sessions_;
  Store* const store_;
  const Clock* const clock_;
  std::atomic<bool> in_doubt_ = false;
};

}  // namespace esker
