#include "client/saver.h"

#include <pthread.h>
#include <unistd.h>

#include <utility>

#include "client/parallel.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/codec.h"
#include "format/names.h"

namespace esker {
namespace {

const Codec* CodecFor(Compression compression) {
  switch (compression) {
    case Compression::kNone:
      return nullptr;
    case Compression::kZstd:
      return FindCodec(CodecId::kZstd);
    case Compression::kPlanes:
      return FindCodec(CodecId::kPlanes);
  }
  ESKER_CHECK(false);
}

SaveHandle EndedHandle(uint64_t step, absl::Status why) {
  auto shared = std::make_shared<SaveHandle::Shared>(step);
  shared->Finish(std::move(why));
  return SaveHandle(std::move(shared));
}

}  // namespace

Saver::Saver(const CheckpointerOptions& options, uint64_t attempt, std::shared_ptr<Connection> connection)
    : options_(options),
      attempt_(attempt),
      pid_(::getpid()),
      connection_(std::move(connection)),
      codec_(CodecFor(options.compression)),
      layouts_(options.chunk_bytes),
      pool_(ThreadsOrDefault(options.threads), "esker-worker"),
      thread_([this] { Work(); }) {
  pthread_setname_np(thread_.native_handle(), "esker-saver");
}

Saver::~Saver() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

absl::Status Saver::Prefault() {
  if (options_.staging_bytes == 0) return absl::OkStatus();
  MutexLock lock(&save_mu_);
  return arena_.Prefault(options_.staging_bytes);
}

bool Saver::Forked() const { return ::getpid() != pid_; }

absl::StatusOr<SaveHandle> Saver::Save(uint64_t step, const State& state) {
  // Before any lock: a thread that does not exist here may have held it when the process was forked.
  if (Forked()) {
    return absl::FailedPreconditionError(StrCat("this process (", ::getpid(),
                                                ") was forked from the one that opened the Checkpointer (",
                                                pid_, "): open another one here"));
  }
  ESKER_RETURN_IF_ERROR(ValidateStep(step));
  MutexLock lock(&save_mu_);
  if (absl::Status refused = AwaitTurn(step); !refused.ok()) return EndedHandle(step, std::move(refused));
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<const LayoutPlan> plan, layouts_.Get(state));
  ESKER_ASSIGN_OR_RETURN(Snapshot snapshot, TakeSnapshot(state, std::move(plan), &arena_, &pool_));
  if (!options_.keep_staging) arena_.Forget();
  auto job = std::make_unique<Job>();
  job->snapshot = std::move(snapshot);
  job->shared = std::make_shared<SaveHandle::Shared>(step);
  SaveHandle handle(job->shared);
  MutexLock state_lock(&mu_);
  busy_ = true;
  busy_step_ = step;
  next_ = std::move(job);
  changed_.NotifyAll();
  return handle;
}

absl::Status Saver::AwaitTurn(uint64_t step) {
  MutexLock lock(&mu_);
  if (!busy_) return absl::OkStatus();
  const auto under_way = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return StrCat("run ", options_.run, ", step ", step, ", rank ", options_.rank,
                  ": not saved: the save of step ", busy_step_, " is still under way");
  };
  switch (options_.in_flight) {
    case InFlightPolicy::kSkip:
      return absl::CancelledError(under_way());
    case InFlightPolicy::kFail:
      return absl::FailedPreconditionError(under_way());
    case InFlightPolicy::kWait:
      break;
  }
  while (busy_) changed_.Wait(&mu_);
  return absl::OkStatus();
}

void Saver::Work() {
  while (true) {
    std::unique_ptr<Job> job;
    {
      MutexLock lock(&mu_);
      while (next_ == nullptr && !stopping_) changed_.Wait(&mu_);
      if (next_ == nullptr) return;
      job = std::move(next_);
    }
    RunJob(job.get());
  }
}

void Saver::RunJob(Job* job) {
  PartSenderOptions options;
  options.run = options_.run;
  options.attempt = attempt_;
  options.step = job->shared->step;
  options.rank = options_.rank;
  options.world_size = options_.world_size;
  options.upload.codec = codec_;
  options.upload.window_bytes = options_.pipeline_bytes;
  options.timeout_ms = options_.save_timeout_ms;
  absl::Status status;
  {
    const auto on_sealed = [this, job] {
      if (!options_.keep_staging) job->snapshot.block.reset();
    };
    PartSender sender(&job->snapshot, options, connection_.get(), &pool_, &history_, &job->shared->counters,
                      on_sealed);
    status = sender.Run();
  }
  // The next Save's turn comes first: whoever waited for this one's handle finds the way free.
  job->snapshot = Snapshot();
  {
    MutexLock lock(&mu_);
    busy_ = false;
    changed_.NotifyAll();
  }
  job->shared->Finish(std::move(status));
}

}  // namespace esker
