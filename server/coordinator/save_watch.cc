#include "server/coordinator/save_watch.h"

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "format/base/duration.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "server/coordinator/requests.h"

namespace esker {

std::string DescribeProgress(const SessionView& view) {
  const uint32_t world_size = view.record.world_size();
  std::string text = StrCat(view.reported, " of ", world_size, " ranks have reported");
  if (view.complete()) return text;
  text += StrCat("; missing: ", absl::StrJoin(view.missing_ranks, ", "));
  const uint32_t more = world_size - view.reported - static_cast<uint32_t>(view.missing_ranks.size());
  if (more > 0) text += StrCat(" and ", more, " more");
  return text;
}

absl::Status SaveWatch::Look() {
  absl::Status first = saves_->LoadOpenIfInDoubt();
  const auto note = [&](const absl::Status& status) {
    if (first.ok()) first = status;
  };
  const std::vector<std::pair<SaveRef, int64_t>> open = store_->OpenSaves();
  // Remembered in the session: once a part is sealed, the store knows no more of it.
  for (const auto& [save, last_ms] : open) sessions_->Progress(save, last_ms);
  for (const SessionView& view : sessions_->Views()) note(Examine(view));
  for (const auto& [save, last_ms] : open) note(EndUnseen(save));
  sessions_->AnswerWaits(clock_->MonotonicMillis());
  return first;
}

absl::Status SaveWatch::Examine(const SessionView& view) {
  if (view.committing) return absl::OkStatus();
  const SaveRef save = RefOf(view.record);
  ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, saves_->Find(save));
  if (standing.state != SaveStanding::State::kSaving) {
    saves_->Ended(save, standing);
    return absl::OkStatus();
  }
  // OpenRun aborts the saves of older attempts itself, unless the catalog fails it.
  ESKER_ASSIGN_OR_RETURN(const StoredRun run, runs_->Require(save.run));
  if (run.record.attempt() != view.record.attempt()) {
    return saves_->Abort(save, StrCat("attempt ", run.record.attempt(), " of the run was opened")).status();
  }
  // Complete and not committed: the commit failed when the last rank reported.
  absl::Status committed;
  if (view.complete()) {
    committed = committer_->CommitIfComplete(save);
    if (committed.ok()) return absl::OkStatus();
  }
  const int64_t idle_ms = clock_->MonotonicMillis() - view.last_progress_ms;
  if (idle_ms < 0 || static_cast<uint64_t>(idle_ms) < save_timeout_ms_) return committed;
  const std::optional<SessionView> now = sessions_->View(save);
  if (!now.has_value() || now->committing || now->last_progress_ms != view.last_progress_ms) return committed;
  std::string reason =
      StrCat("no rank sent anything for ", FormatDuration(std::chrono::milliseconds(save_timeout_ms_)), ": ",
             DescribeProgress(view));
  if (!committed.ok()) reason += StrCat("; but it can't be committed: ", MessageOf(committed));
  return saves_->Abort(save, reason).status();
}

absl::Status SaveWatch::EndUnseen(const SaveRef& save) {
  ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, saves_->Find(save));
  if (standing.state != SaveStanding::State::kSaving) store_->EndSave(save);
  return absl::OkStatus();
}

}  // namespace esker
