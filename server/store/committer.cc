#include "server/store/committer.h"

#include <pthread.h>

#include <set>
#include <utility>

#include "format/base/status.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

// A group's memory: envelopes once in the requests and once in the batch, and about 200 bytes a chunk.
constexpr size_t kMaxGroupEnvelopeBytes = 16 << 20;

size_t EnvelopeBytes(const SealRequest& request) {
  return request.part_envelope.size() + request.layout_envelope.size();
}

}  // namespace

Committer::Committer(CommitContext context) : context_(context), thread_([this] { Work(); }) {
  pthread_setname_np(thread_.native_handle(), "esker-commit");
}

Committer::~Committer() { Stop(); }

void Committer::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<SealResult> Committer::Seal(const SealRequest& request) {
  Waiting waiting;
  waiting.work.request = &request;
  MutexLock lock(&mu_);
  seals_.push_back(&waiting);
  wake_.NotifyAll();
  while (!waiting.done) waiting.ended.Wait(&mu_);
  return std::move(waiting.work.result);
}

absl::Status Committer::Run(std::function<absl::Status(CommitContext*)> task) {
  CondVar ended;
  bool done = false;
  absl::Status result;
  Post([&](CommitContext* context) {
    absl::Status status = task(context);
    MutexLock lock(&mu_);
    result = std::move(status);
    done = true;
    ended.NotifyAll();
  });
  MutexLock lock(&mu_);
  while (!done) ended.Wait(&mu_);
  return result;
}

void Committer::Post(std::function<void(CommitContext*)> task) {
  MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
  wake_.NotifyAll();
}

void Committer::Settle(const LetGo& let_go) {
  if (!let_go.forgotten.empty()) context_.ReleaseForgotten(let_go.forgotten);
  if (let_go.unreferenced.empty()) return;
  Post([hashes = let_go.unreferenced](CommitContext* context) {
    const absl::Status status = Reap(context, hashes);
    // They stay in the index with a count of 0, until the next start.
    if (!status.ok())
      spdlog::error("store: {} chunks can't be removed: {}", hashes.size(), status.ToString());
  });
}

std::vector<Committer::Waiting*> Committer::TakeGroup() {
  std::vector<Waiting*> group;
  std::deque<Waiting*> later;
  std::set<PartKey> parts;
  size_t bytes = 0;
  for (Waiting* seal : seals_) {
    bytes += EnvelopeBytes(*seal->work.request);
    const bool fits = group.empty() || bytes <= kMaxGroupEnvelopeBytes;
    if (fits && parts.insert(seal->work.request->key()).second) {
      group.push_back(seal);
    } else {
      later.push_back(seal);
    }
  }
  seals_ = std::move(later);
  return group;
}

void Committer::SealGroup(const std::vector<Waiting*>& group) {
  std::vector<SealWork*> works;
  for (Waiting* seal : group) works.push_back(&seal->work);
  std::vector<LetGo> let_go;
  SealTogether(&context_, works, &let_go);
  // Before anybody is told, so that what a caller asks for next stands in line behind it.
  for (const LetGo& one : let_go) Settle(one);
  MutexLock lock(&mu_);
  for (Waiting* seal : group) {
    seal->done = true;
    seal->ended.NotifyAll();
  }
}

void Committer::Work() {
  while (true) {
    std::function<void(CommitContext*)> task;
    std::vector<Waiting*> group;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty() && seals_.empty() && !stopping_) wake_.Wait(&mu_);
      if (tasks_.empty() && seals_.empty()) return;
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      group = TakeGroup();
    }
    if (!group.empty()) SealGroup(group);
    if (task) task(&context_);
  }
}

}  // namespace esker::store
