// What is known in memory of the saves under way: which ranks have reported, who waits for the end, when
// something last happened. The catalog alone says whether a save is under way; a session is only what its
// ranks have told since this process started, and they can tell it again. Saves::EnsureSession makes
// sessions, and sees to it that none outlives its save.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "format/proto/service.pb.h"
#include "server/store/store.h"

namespace esker {

// How many missing ranks are named.
inline constexpr size_t kMissingRanksShown = 16;

using WaitDone = std::function<void(absl::StatusOr<v1::SaveStatus>)>;

// One save's reports, as they go into its manifest.
struct CommitWork {
  v1::SaveRecord record;
  std::vector<v1::ServerInfo> servers;
  std::vector<v1::PartEntry> parts;  // by rank
};

// A session as the watch looks at it.
struct SessionView {
  v1::SaveRecord record;
  uint32_t reported = 0;
  std::vector<uint32_t> missing_ranks;  // the first kMissingRanksShown
  int64_t last_progress_ms = 0;         // MonotonicMillis of its opening, the last new report or Progress
  bool committing = false;

  bool complete() const { return reported == record.world_size(); }
};

// Thread-safe. Callbacks are called without locks held.
class SaveSessions {
 public:
  explicit SaveSessions(const Clock* clock) : clock_(clock) {}
  // Close() was called.
  ~SaveSessions();  // Makes a session, whose time counts from now; false if the save has one.
  bool Open(const v1::SaveRecord& record) ABSL_LOCKS_EXCLUDED(mu_);  // The rank has begun the save.
  void Join(const SaveRef& save, uint32_t rank) ABSL_LOCKS_EXCLUDED(mu_);
  // Of a save that was aborted, for `reason` by the catalog, whether End was called for it by now or not:
  // why, if this rank had not joined it; from then on the rank counts as if it had. OK for ranks that had
  // joined, and for saves that are not remembered.
  absl::Status TellAborted(const SaveRef& save, const std::string& reason, uint32_t rank)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Takes a rank's checked report, and returns how far the save is with it. The same part again changes
  // nothing; another part of the same rank is kAlreadyExists. nullopt: the save has no session, it has ended.
  absl::StatusOr<std::optional<v1::SaveStatus>> Report(const SaveRef& save, const v1::PartEntry& part,
                                                       const std::vector<v1::ServerInfo>& servers)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Something happened with the save at `at_ms` (MonotonicMillis).
  void Progress(const SaveRef& save, int64_t at_ms) ABSL_LOCKS_EXCLUDED(mu_);

  // If all ranks have reported: the work of committing, for this caller alone until it calls End or
  // CommitFailed. Waits while another caller is at it. nullopt if a rank is missing, or the session has
  // ended.
  std::optional<CommitWork> TakeCommit(const SaveRef& save) ABSL_LOCKS_EXCLUDED(mu_);
  void CommitFailed(const SaveRef& save)
      ABSL_LOCKS_EXCLUDED(mu_);  // Ends the session, if there is one, and tells those who wait that the save
                                 // is `state`. `code` is what ranks get that come too
  // late (TellAborted).
  void End(const SaveRef& save, v1::SaveStatus::State state, const std::string& reason,
           absl::StatusCode code = absl::StatusCode::kAborted)
      ABSL_LOCKS_EXCLUDED(mu_);  // Takes `done` and calls it when the session ends, or once AnswerWaits comes
                                 // after the timeout; at once if that is 0, or after Close
  // (kUnavailable). Returns false, and leaves `done` alone, if there is no session.
  bool Wait(const SaveRef& save, uint32_t rank, uint32_t timeout_ms, WaitDone* done) ABSL_LOCKS_EXCLUDED(mu_);

  // Answers the waits whose deadlines have passed.
  void AnswerWaits(int64_t now_ms) ABSL_LOCKS_EXCLUDED(mu_);

  // nullopt if there is no session.
  std::optional<SessionView> View(const SaveRef& save) const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<SessionView> Views() const ABSL_LOCKS_EXCLUDED(mu_);
  // How many sessions of the run there are.
  size_t Count(const std::string& run) const ABSL_LOCKS_EXCLUDED(mu_);

  // Answers all waits, and those to come, with kUnavailable.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static constexpr size_t kMaxAborted = 64;
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  struct Waiter {
    uint32_t rank = 0;
    int64_t deadline_ms = 0;
    WaitDone done;
  };
  // A set of ranks: one bit each.
  using RankSet = std::vector<uint64_t>;
  struct Session {
    v1::SaveRecord record;
    std::vector<v1::ServerInfo> servers;                      // distinct ids
    absl::flat_hash_map<std::string, uint32_t> server_index;  // id -> place in `servers`
    absl::flat_hash_map<uint32_t, v1::PartEntry> parts;
    RankSet joined;
    RankSet reported;
    size_t first_gap = 0;  // all words of `reported` before this one are full
    int64_t last_progress_ms = 0;
    bool committing = false;
    std::vector<Waiter> waiters;
    int64_t next_deadline_ms = kNever;  // the earliest of the waiters'
  };                                    // An aborted save whose ranks don't all know of it.
  struct Aborted {
    SaveRef save;
    absl::Status why;
    RankSet told;
  };
  // A callback to be called once the lock is free.
  struct Answer {
    WaitDone done;
    absl::StatusOr<v1::SaveStatus> status;
  };

  Session* Find(const SaveRef& save) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Aborted* FindAborted(const SaveRef& save) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static bool Contains(const RankSet& ranks, uint32_t rank);
  static void Insert(uint32_t rank, RankSet* ranks);
  static std::vector<uint32_t> MissingRanks(const Session& session);
  static v1::SaveStatus SavingStatus(const Session& session, uint32_t rank);
  static SessionView ViewOf(const Session& session);
  static void AddPart(Session* session, const v1::PartEntry& part,
                      const std::vector<v1::ServerInfo>& servers);
  static void TakeExpired(Session* session, int64_t now_ms, std::vector<Answer>* answers);
  static void Call(std::vector<Answer> answers);

  const Clock* const clock_;

  // A leaf: no other lock is taken, nothing is read or written and nobody is called while it is held.
  mutable Mutex mu_;
  CondVar commit_ended_;
  std::map<SaveRef, Session> sessions_ ABSL_GUARDED_BY(mu_);
  std::deque<Aborted> aborted_ ABSL_GUARDED_BY(mu_);  // the newest kMaxAborted, oldest first
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace esker
