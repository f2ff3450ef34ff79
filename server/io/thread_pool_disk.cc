#include "server/io/thread_pool_disk.h"

#include <errno.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/thread_pool.h"

namespace esker {
namespace {

// As many operations in the device at once: enough for it to be busy with pieces of some MiB, and they mostly
// sleep.
constexpr int kThreads = 8;
constexpr int kMaxQueuedOps = 128;

class ThreadPoolEngine : public IoEngine {
 public:
  ThreadPoolEngine() : threads_(kThreads, "esker-disk") {}
  ~ThreadPoolEngine() override { ESKER_CHECK(!OnEngineThread()); }

  void Submit(IoOp op) override {
    // Shared only because std::function demands to be copyable.
    auto shared = std::make_shared<IoOp>(std::move(op));
    MutexLock lock(&mu_);
    while (queued_ >= kMaxQueuedOps && !OnEngineThread()) not_full_.Wait(&mu_);
    ++queued_;
    // Under the lock that Run() takes first: when the operation has ended and its owner destroys the disk,
    // nothing here may still be using the pool.
    threads_.Schedule([this, shared] { Run(shared.get()); });
  }

  // Ordinary system calls have no use for it.
  void RegisterMemory(MutableBytes) override {}

  std::string Describe(const std::string& file_access) const override {
    return absl::StrCat("thread pool (", file_access, ", ", kThreads, " threads)");
  }

 private:
  void Run(IoOp* op) {
    MarkEngineThread();
    {
      MutexLock lock(&mu_);
      --queued_;
      not_full_.NotifyOne();
    }
    while (!op->ended()) {
      const MutableBytes rest = op->rest();
      const auto position = static_cast<off_t>(op->position());
      const ssize_t result = op->kind() == IoOp::Kind::kRead
                                 ? ::pread(op->fd(), rest.data(), rest.size(), position)
                                 : ::pwrite(op->fd(), rest.data(), rest.size(), position);
      op->Account(result < 0 ? -errno : result);
    }
    op->Finish();
  }

  Mutex mu_;
  CondVar not_full_;
  int queued_ ABSL_GUARDED_BY(mu_) = 0;

  ThreadPool threads_;  // last: its destructor runs what is queued, which uses the rest
};

}  // namespace

std::unique_ptr<IoEngine> StartThreadPoolEngine() { return std::make_unique<ThreadPoolEngine>(); }

}  // namespace esker
