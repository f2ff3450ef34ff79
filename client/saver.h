// Save's way through one Checkpointer: policy, snapshot, and the thread that brings it to the server.
#pragma once

#include <sys/types.h>

#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "client/arena_sender.h"
#include "client/connection.h"
#include "client/delta_history.h"
#include "client/part_sender.h"
#include "client/save_state.h"
#include "client/snapshot.h"
#include "client/staging_arena.h"
#include "esker/checkpointer.h"
#include "format/base/mutex.h"
#include "format/base/thread_pool.h"

namespace esker {

// Thread-safe. At most one save is under way: its snapshot is the arena's only user, so the arena is written
// again only after the save has ended, and then only once no view of it is left (StagingArena::Acquire): gRPC
// may hold on to messages for a moment after their stream is over, and each of those is a view.
class Saver {
 public:
  // `options` were checked. `attempt`: what OpenRun gave.
  Saver(const CheckpointerOptions& options, uint64_t attempt, std::shared_ptr<Connection> connection);
  // Waits for the save under way.
  ~Saver();
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  // Finds out how payload gets to the server, and allocates the staging memory that the options ask for. An
  // error if it must be shared with the server and can't be, or there is not enough.
  absl::Status Prepare(const Deadline& deadline);

  // As Checkpointer::Save.
  absl::StatusOr<SaveHandle> Save(uint64_t step, const State& state);

  // Whether this is another process than the one that made it, by fork(): it has none of the threads.
  bool Forked() const;

 private:
  struct Job {
    Snapshot snapshot;
    std::shared_ptr<SaveHandle::Shared> shared;
    std::unique_ptr<PartSender> sender;
  };

  // Waits until no save is under way, or says why there is to be none.
  absl::Status AwaitTurn(uint64_t step);
  std::unique_ptr<Job> MakeJob(uint64_t step, Snapshot snapshot);
  void Work();
  void RunJob(Job* job);

  const CheckpointerOptions options_;
  const uint64_t attempt_;
  const pid_t pid_;
  const std::shared_ptr<Connection> connection_;
  const Codec* const codec_;  // nullptr: none
  const bool delta_;          // chunks may be stored as deltas

  // Held during Save: calls are taken one after the other. Taken before mu_.
  Mutex save_mu_;
  LayoutCache layouts_ ABSL_GUARDED_BY(save_mu_);
  StagingArena arena_ ABSL_GUARDED_BY(save_mu_);

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;  // a save is under way
  uint64_t busy_step_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<Job> next_ ABSL_GUARDED_BY(mu_);

  SaveHistory history_;  // only thread_ uses it
  ArenaSender sender_;   // thread_ uses it while a save is under way, else who holds save_mu_
  DeltaHistory deltas_;  // likewise
  ThreadPool pool_;
  std::thread thread_;
};

}  // namespace esker
