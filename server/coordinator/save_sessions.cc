#include "server/coordinator/save_sessions.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/hash.h"
#include "server/coordinator/requests.h"

namespace esker {
namespace {

constexpr uint32_t kBitsPerWord = 64;

std::string HexOf(const std::string& digest) {
  const absl::StatusOr<Hash128> hash = HashFromBytes(digest, "digest");
  return hash.ok() ? hash->ToHex() : "(none)";
}

absl::Status Contradiction(const SaveRef& save, const v1::PartEntry& first, const v1::PartEntry& second) {
  return absl::AlreadyExistsError(
      StrCat(NameOf(save), ": rank ", first.rank(), " has reported the part ", HexOf(first.part_digest()),
             ", and now reports ", HexOf(second.part_digest()),
             ": two processes claim this rank. Give each process of the job a rank of its own"));
}

absl::Status Stopping() {
  return absl::UnavailableError("the server is stopping; ask again when it is back");
}

absl::Status AbortedBecause(const SaveRef& save, const std::string& reason,
                            absl::StatusCode code = absl::StatusCode::kAborted) {
  return absl::Status(code, StrCat("the save of ", NameOf(save), " was aborted: ", reason));
}

}  // namespace

SaveSessions::~SaveSessions() {
  MutexLock lock(&mu_);
  ESKER_CHECK(closed_);
}

SaveSessions::Session* SaveSessions::Find(const SaveRef& save) {
  const auto found = sessions_.find(save);
  return found == sessions_.end() ? nullptr : &found->second;
}

bool SaveSessions::Contains(const RankSet& ranks, uint32_t rank) {
  const size_t word = rank / kBitsPerWord;
  return word < ranks.size() && (ranks[word] >> (rank % kBitsPerWord) & 1) != 0;
}

void SaveSessions::Insert(uint32_t rank, RankSet* ranks) {
  const size_t word = rank / kBitsPerWord;
  if (word >= ranks->size()) ranks->resize(word + 1);
  (*ranks)[word] |= uint64_t{1} << (rank % kBitsPerWord);
}

std::vector<uint32_t> SaveSessions::MissingRanks(const Session& session) {
  std::vector<uint32_t> missing;
  const uint32_t world_size = session.record.world_size();
  const size_t words = (world_size + kBitsPerWord - 1) / kBitsPerWord;
  for (size_t word = session.first_gap; word < words; ++word) {
    uint64_t absent = ~(word < session.reported.size() ? session.reported[word] : 0);
    for (; absent != 0; absent &= absent - 1) {
      const auto rank = static_cast<uint32_t>(word * kBitsPerWord + std::countr_zero(absent));
      if (rank >= world_size || missing.size() == kMissingRanksShown) return missing;
      missing.push_back(rank);
    }
  }
  return missing;
}

v1::SaveStatus SaveSessions::SavingStatus(const Session& session, uint32_t rank) {
  v1::SaveStatus status;
  status.set_state(v1::SaveStatus::SAVING);
  status.set_world_size(session.record.world_size());
  status.set_reported(static_cast<uint32_t>(session.parts.size()));
  for (const uint32_t missing : MissingRanks(session)) status.add_missing_ranks(missing);
  status.set_this_rank_reported(Contains(session.reported, rank));
  return status;
}

SessionView SaveSessions::ViewOf(const Session& session) {
  return {session.record, static_cast<uint32_t>(session.parts.size()), MissingRanks(session),
          session.last_progress_ms, session.committing};
}

bool SaveSessions::Open(const v1::SaveRecord& record) {
  MutexLock lock(&mu_);
  const auto [place, is_new] = sessions_.try_emplace(RefOf(record));
  if (!is_new) return false;
  place->second.record = record;
  place->second.last_progress_ms = clock_->MonotonicMillis();
  return true;
}

void SaveSessions::Join(const SaveRef& save, uint32_t rank) {
  MutexLock lock(&mu_);
  if (Session* const session = Find(save); session != nullptr) {
    Insert(rank, &session->joined);
  } else if (Aborted* const aborted = FindAborted(save); aborted != nullptr) {
    Insert(rank, &aborted->told);  // aborted just now: it learns of it when it sends something
  }
}

absl::Status SaveSessions::TellAborted(const SaveRef& save, const std::string& reason, uint32_t rank) {
  MutexLock lock(&mu_);
  if (Session* const session = Find(save); session != nullptr) {
    // The catalog says so already, and End is about to come.
    if (Contains(session->joined, rank)) return absl::OkStatus();
    Insert(rank, &session->joined);
    return AbortedBecause(save, reason);
  }
  Aborted* const aborted = FindAborted(save);
  if (aborted == nullptr || Contains(aborted->told, rank)) return absl::OkStatus();
  Insert(rank, &aborted->told);
  return aborted->why;
}

SaveSessions::Aborted* SaveSessions::FindAborted(const SaveRef& save) {
  const auto found = std::find_if(aborted_.begin(), aborted_.end(),
                                  [&](const Aborted& aborted) { return aborted.save == save; });
  return found == aborted_.end() ? nullptr : &*found;
}

void SaveSessions::AddPart(Session* session, const v1::PartEntry& part,
                           const std::vector<v1::ServerInfo>& servers) {
  v1::PartEntry entry = part;
  for (uint32_t& index : *entry.mutable_servers()) {
    const v1::ServerInfo& server = servers[index];
    const auto [place, is_new] =
        session->server_index.try_emplace(server.id(), static_cast<uint32_t>(session->servers.size()));
    if (is_new) session->servers.push_back(server);
    index = place->second;
  }
  Insert(part.rank(), &session->reported);
  Insert(part.rank(), &session->joined);  // perhaps before a restart
  while (session->first_gap < session->reported.size() && ~session->reported[session->first_gap] == 0) {
    ++session->first_gap;
  }
  session->parts.emplace(part.rank(), std::move(entry));
}

absl::StatusOr<std::optional<v1::SaveStatus>> SaveSessions::Report(
    const SaveRef& save, const v1::PartEntry& part, const std::vector<v1::ServerInfo>& servers) {
  MutexLock lock(&mu_);
  Session* const session = Find(save);
  if (session == nullptr) return std::nullopt;
  ESKER_CHECK(part.rank() < session->record.world_size());
  const auto known = session->parts.find(part.rank());
  if (known == session->parts.end()) {
    AddPart(session, part, servers);
    session->last_progress_ms = clock_->MonotonicMillis();
  } else if (known->second.part_digest() != part.part_digest()) {
    return Contradiction(save, known->second, part);
  }
  return SavingStatus(*session, part.rank());
}

void SaveSessions::Progress(const SaveRef& save, int64_t at_ms) {
  MutexLock lock(&mu_);
  Session* const session = Find(save);
  if (session != nullptr) session->last_progress_ms = std::max(session->last_progress_ms, at_ms);
}

std::optional<CommitWork> SaveSessions::TakeCommit(const SaveRef& save) {
  MutexLock lock(&mu_);
  Session* session = Find(save);
  while (session != nullptr && session->committing) {
    commit_ended_.Wait(&mu_);
    session = Find(save);
  }
  if (session == nullptr || session->parts.size() < session->record.world_size()) return std::nullopt;
  session->committing = true;
  CommitWork work{session->record, session->servers, {}};
  work.parts.reserve(session->parts.size());
  for (uint32_t rank = 0; rank < session->record.world_size(); ++rank) {
    work.parts.push_back(session->parts.at(rank));
  }
  return work;
}

void SaveSessions::CommitFailed(const SaveRef& save) {
  MutexLock lock(&mu_);
  if (Session* const session = Find(save); session != nullptr) session->committing = false;
  commit_ended_.NotifyAll();
}

void SaveSessions::End(const SaveRef& save, v1::SaveStatus::State state, const std::string& reason,
                       absl::StatusCode code) {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mu_);
    Session* const session = Find(save);
    if (session == nullptr) return;
    v1::SaveStatus status = SavingStatus(*session, 0);
    status.set_state(state);
    status.set_reason(reason);
    if (state == v1::SaveStatus::COMMITTED) {
      status.set_reported(status.world_size());
      status.clear_missing_ranks();
    }
    for (Waiter& waiter : session->waiters) {
      status.set_this_rank_reported(state == v1::SaveStatus::COMMITTED ||
                                    Contains(session->reported, waiter.rank));
      answers.push_back({std::move(waiter.done), status});
    }
    if (state == v1::SaveStatus::ABORTED) {
      aborted_.push_back({save, AbortedBecause(save, reason, code), std::move(session->joined)});
      if (aborted_.size() > kMaxAborted) aborted_.pop_front();
    }
    sessions_.erase(save);
    commit_ended_.NotifyAll();
  }
  Call(std::move(answers));
}

bool SaveSessions::Wait(const SaveRef& save, uint32_t rank, uint32_t timeout_ms, WaitDone* done) {
  absl::StatusOr<v1::SaveStatus> answer = Stopping();
  {
    MutexLock lock(&mu_);
    if (!closed_) {
      Session* const session = Find(save);
      if (session == nullptr) return false;
      if (timeout_ms > 0) {
        const int64_t deadline_ms = clock_->MonotonicMillis() + timeout_ms;
        session->waiters.push_back({rank, deadline_ms, std::move(*done)});
        session->next_deadline_ms = std::min(session->next_deadline_ms, deadline_ms);
        return true;
      }
      answer = SavingStatus(*session, rank);
    }
  }
  (*done)(std::move(answer));
  return true;
}

void SaveSessions::TakeExpired(Session* session, int64_t now_ms, std::vector<Answer>* answers) {
  v1::SaveStatus status = SavingStatus(*session, 0);
  session->next_deadline_ms = kNever;
  std::vector<Waiter> left;
  for (Waiter& waiter : session->waiters) {
    if (waiter.deadline_ms <= now_ms) {
      status.set_this_rank_reported(Contains(session->reported, waiter.rank));
      answers->push_back({std::move(waiter.done), status});
    } else {
      session->next_deadline_ms = std::min(session->next_deadline_ms, waiter.deadline_ms);
      left.push_back(std::move(waiter));
    }
  }
  session->waiters = std::move(left);
}

void SaveSessions::AnswerWaits(int64_t now_ms) {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mu_);
    for (auto& [save, session] : sessions_) {
      if (session.next_deadline_ms <= now_ms) TakeExpired(&session, now_ms, &answers);
    }
  }
  Call(std::move(answers));
}

std::optional<SessionView> SaveSessions::View(const SaveRef& save) const {
  MutexLock lock(&mu_);
  const auto found = sessions_.find(save);
  if (found == sessions_.end()) return std::nullopt;
  return ViewOf(found->second);
}

std::vector<SessionView> SaveSessions::Views() const {
  MutexLock lock(&mu_);
  std::vector<SessionView> views;
  for (const auto& [save, session] : sessions_) views.push_back(ViewOf(session));
  return views;
}

size_t SaveSessions::Count(const std::string& run) const {
  MutexLock lock(&mu_);
  size_t count = 0;
  for (auto session = sessions_.lower_bound(SaveRef{run, 0, 0});
       session != sessions_.end() && session->first.run == run; ++session) {
    ++count;
  }
  return count;
}

void SaveSessions::Close() {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mu_);
    closed_ = true;
    for (auto& [save, session] : sessions_) {
      for (Waiter& waiter : session.waiters) answers.push_back({std::move(waiter.done), Stopping()});
      session.waiters.clear();
      session.next_deadline_ms = kNever;
    }
  }
  Call(std::move(answers));
}

void SaveSessions::Call(std::vector<Answer> answers) {
  for (Answer& answer : answers) answer.done(std::move(answer.status));
}

}  // namespace esker
