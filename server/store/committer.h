// The one thread that changes the index.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "server/store/commit_context.h"
#include "server/store/removal.h"
#include "server/store/seal_group.h"

namespace esker::store {

// Thread-safe. What waits is done in turns: one task, then all seals that are waiting, as one group.
class Committer {
 public:
  explicit Committer(CommitContext context);
  ~Committer();
  // Does what is waiting, then ends the thread. What comes later is never done: nobody may be waiting for it.
  void Stop();

  // Blocks until the part is durable and visible, or not sealed. The caller has pinned its chunks.
  absl::StatusOr<SealResult> Seal(const SealRequest& request);

  // Runs a task on the thread, and waits for its end. Not from the thread itself.
  absl::Status Run(std::function<absl::Status(CommitContext*)> task);
  // The same without waiting.
  void Post(std::function<void(CommitContext*)> task);

  // Sees to what nobody holds any more.
  void Settle(const LetGo& let_go);

 private:
  struct Waiting {
    SealWork work;
    bool done = false;
    CondVar ended;
  };

  void Work();
  // Takes seals off the queue: no two of one part, and no more than fit into memory.
  std::vector<Waiting*> TakeGroup() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SealGroup(const std::vector<Waiting*>& group);

  CommitContext context_;  // the thread's

  Mutex mu_;
  CondVar wake_;
  std::deque<std::function<void(CommitContext*)>> tasks_ ABSL_GUARDED_BY(mu_);
  std::deque<Waiting*> seals_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace esker::store
