#include "server/coordinator/runs.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

constexpr size_t kNamesShown = 5;

// How many characters must be put in, taken out or replaced to make one of the other (Levenshtein).
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row.back();
}

const v1::Incarnation* FindIncarnation(const v1::RunRecord& run, const std::string& token) {
  for (const v1::Incarnation& incarnation : run.incarnations()) {
    if (incarnation.token() == token) return &incarnation;
  }
  return nullptr;
}

absl::Status OlderAttempt(const std::string& run, uint64_t attempt, uint64_t newest) {
  return absl::PermissionDeniedError(StrCat(
      "run ", run, ": this process belongs to attempt ", attempt, ", but attempt ", newest,
      " has been opened since: the job was started again. End this process; nothing it saves would count"));
}

}  // namespace

std::vector<std::string> NearestNames(const std::string& wanted, std::vector<std::string> known,
                                      size_t count) {
  std::vector<std::pair<size_t, std::string>> ranked;
  for (std::string& name : known) {
    const size_t distance = EditDistance(wanted, name);
    ranked.emplace_back(distance, std::move(name));
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string> nearest;
  for (size_t i = 0; i < std::min(count, ranked.size()); ++i) nearest.push_back(std::move(ranked[i].second));
  return nearest;
}

absl::Status CheckAttempt(const v1::RunRecord& run, uint64_t attempt) {
  if (attempt == run.attempt()) return absl::OkStatus();
  if (attempt < run.attempt()) return OlderAttempt(run.run(), attempt, run.attempt());
  return absl::InvalidArgumentError(StrCat("run ", run.run(), ": attempt ", attempt,
                                           " was never given out, the newest is ", run.attempt(),
                                           "; call OpenRun and use the number that it returns"));
}

absl::StatusOr<uint64_t> Runs::Open(const std::string& run, const std::string& incarnation) const {
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const StoredRun stored, records_->Run(run));
    if (const v1::Incarnation* known = FindIncarnation(stored.record, incarnation); known != nullptr) {
      if (known->attempt() < stored.record.attempt()) {
        return OlderAttempt(run, known->attempt(), stored.record.attempt());
      }
      return known->attempt();
    }
    v1::RunRecord record = stored.record;
    if (!stored.exists()) {
      record.set_run(run);
      record.set_created_unix_ms(clock_->UnixMillis());
    }
    record.set_attempt(record.attempt() + 1);
    v1::Incarnation* newest = record.add_incarnations();
    newest->set_token(incarnation);
    newest->set_attempt(record.attempt());
    newest->set_opened_unix_ms(clock_->UnixMillis());
    const int surplus = record.incarnations_size() - kMaxIncarnations;
    if (surplus > 0) record.mutable_incarnations()->DeleteSubrange(0, surplus);
    ESKER_ASSIGN_OR_RETURN(const bool opened, records_->Apply(CatalogChange().If(stored).Put(record)));
    if (!opened) continue;
    spdlog::info("run {}: attempt {} opened", run, record.attempt());
    return record.attempt();
  }
  return LostTooManyRaces(StrCat("opening run ", run));
}

absl::StatusOr<bool> Runs::IsNewIncarnation(const std::string& run, const std::string& incarnation) const {
  ESKER_ASSIGN_OR_RETURN(const StoredRun stored, records_->Run(run));
  return stored.exists() && FindIncarnation(stored.record, incarnation) == nullptr;
}

absl::StatusOr<StoredRun> Runs::Require(const std::string& run) const {
  ESKER_ASSIGN_OR_RETURN(StoredRun stored, records_->Run(run));
  if (stored.exists()) return stored;
  ESKER_ASSIGN_OR_RETURN(const std::vector<StoredRun> all, records_->Runs());
  if (all.empty()) {
    return absl::NotFoundError(StrCat("there is no run ", run, ": this server has no runs yet"));
  }
  std::vector<std::string> names;
  for (const StoredRun& known : all) names.push_back(known.record.run());
  const std::string shown = absl::StrJoin(NearestNames(run, std::move(names), kNamesShown), ", ");
  return absl::NotFoundError(all.size() <= kNamesShown
                                 ? StrCat("there is no run ", run, "; the runs are: ", shown)
                                 : StrCat("there is no run ", run, "; of the ", all.size(),
                                          " runs, those with the most similar names are: ", shown));
}

absl::StatusOr<StoredRun> Runs::RequireAttempt(const std::string& run, uint64_t attempt) const {
  ESKER_ASSIGN_OR_RETURN(StoredRun stored, Require(run));
  ESKER_RETURN_IF_ERROR(CheckAttempt(stored.record, attempt));
  return stored;
}

absl::StatusOr<v1::ListRunsResponse> Runs::List() const {
  ESKER_ASSIGN_OR_RETURN(std::vector<StoredRun> all, records_->Runs());
  v1::ListRunsResponse response;
  for (StoredRun& stored : all) {
    stored.record.clear_incarnations();
    *response.add_runs() = std::move(stored.record);
  }
  return response;
}

absl::StatusOr<v1::SetRetentionResponse> Runs::SetRetention(const v1::SetRetentionRequest& request) const {
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const StoredRun stored, Require(request.run()));
    v1::RunRecord record = stored.record;
    record.clear_retention();
    if (request.has_policy()) *record.mutable_retention() = request.policy();
    ESKER_ASSIGN_OR_RETURN(const bool set, records_->Apply(CatalogChange().If(stored).Put(record)));
    if (set) return v1::SetRetentionResponse();
  }
  return LostTooManyRaces(StrCat("setting the retention of run ", request.run()));
}

}  // namespace esker
