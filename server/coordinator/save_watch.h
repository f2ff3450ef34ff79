// Looks after the saves under way: answers waits that ran out, aborts saves that make no progress, finishes
// commits that failed, and tidies up after saves that ended unseen.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "format/base/clock.h"
#include "server/coordinator/commit.h"
#include "server/coordinator/runs.h"
#include "server/coordinator/save_sessions.h"
#include "server/coordinator/saves.h"
#include "server/store/store.h"

namespace esker {

// "3 of 8 ranks have reported; missing: 0, 2, 5, 6, 7"
std::string DescribeProgress(const SessionView& view);

// Thread-safe, but meant to be called by one thread.
class SaveWatch {
 public:
  // All must outlive this.
  SaveWatch(const Runs* runs, Saves* saves, SaveSessions* sessions, SaveCommitter* committer, Store* store,
            const Clock* clock, uint64_t save_timeout_ms)
      : runs_(runs),
        saves_(saves),
        sessions_(sessions),
        committer_(committer),
        store_(store),
        clock_(clock),
        save_timeout_ms_(save_timeout_ms) {}

  // One look at everything. The first error; what it stopped is tried again the next time.
  absl::Status Look();

 private:
  absl::Status Examine(const SessionView& view);
  absl::Status EndUnseen(const SaveRef& save);

  const Runs* const runs_;
  Saves* const saves_;
  SaveSessions* const sessions_;
  SaveCommitter* const committer_;
  Store* const store_;
  const Clock* const clock_;
  const uint64_t save_timeout_ms_;
};

}  // namespace esker
