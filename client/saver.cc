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
    case Compression::kAuto:
    case Compression::kDelta:
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
      delta_(options.compression == Compression::kDelta),
      layouts_(options.chunk_bytes),
      history_(ThreadsOrDefault(options.threads)),
      sender_(connection_.get(), options.transport),
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

absl::Status Saver::Prepare(const Deadline& deadline) {
  MutexLock lock(&save_mu_);
  ESKER_RETURN_IF_ERROR(sender_.Find(deadline));
  arena_.ShareBlocks(sender_.MayShare());
  if (options_.staging_bytes == 0) return absl::OkStatus();
  const uint64_t bytes = StagingBytesFor(options_.staging_bytes, options_.chunk_bytes);
  ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<StagingBlock> block,
                         arena_.Prefault(delta_ ? DeltaHistory::BlockBytesFor(bytes) : bytes));
  // Now, so that the first save does not wait for it. Whatever goes wrong, saves find another way.
  if (sender_.MayShare()) static_cast<void>(sender_.Connect(block));
  return absl::OkStatus();
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
  ESKER_ASSIGN_OR_RETURN(Snapshot snapshot,
                         PrepareSnapshot(state, std::move(plan), &arena_, delta_ ? &deltas_ : nullptr));
  if (!options_.keep_staging) arena_.Forget();
  std::unique_ptr<Job> job = MakeJob(step, std::move(snapshot));
  job->sender->Announce();
  CopyState(state, job->snapshot, &pool_, [&job](size_t chunks) { job->sender->Ready(chunks); });
  job->sender->AwaitTaken();
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

std::unique_ptr<Saver::Job> Saver::MakeJob(uint64_t step, Snapshot snapshot) {
  PartSenderOptions options;
  options.run = options_.run;
  options.attempt = attempt_;
  options.step = step;
  options.rank = options_.rank;
  options.world_size = options_.world_size;
  options.upload.codec = codec_;
  options.upload.choose_codec = options_.compression == Compression::kAuto;
  options.upload.delta = delta_;
  options.upload.window_bytes = options_.pipeline_bytes;
  options.upload.clients = options_.world_size;
  options.timeout_ms = options_.save_timeout_ms;
  auto job = std::make_unique<Job>();
  job->snapshot = std::move(snapshot);
  job->shared = std::make_shared<SaveHandle::Shared>(step);
  const auto on_sealed = [this, job = job.get()] {
    if (options_.keep_staging) return;
    job->snapshot.block.reset();
    sender_.Disconnect();
  };
  job->sender = std::make_unique<PartSender>(&job->snapshot, options, connection_.get(), &sender_, &pool_,
                                             &history_, &job->shared->counters, on_sealed);
  return job;
}

void Saver::RunJob(Job* job) {
  absl::Status status = job->sender->Run();
  if (delta_ && status.ok()) {
    deltas_.Committed(job->snapshot, job->sender->StoredAsDelta(), job->shared->counters.sent_bytes,
                      job->sender->Hashes());
  }
  // The next Save's turn comes first: whoever waited for this one's handle finds the way free.
  job->sender.reset();
  job->snapshot = Snapshot();
  {
    MutexLock lock(&mu_);
    busy_ = false;
    changed_.NotifyAll();
  }
  job->shared->Finish(std::move(status));
}

}  // namespace esker
