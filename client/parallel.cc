#include "client/parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "format/base/mutex.h"

namespace esker {
namespace {

constexpr int kMostThreads = 8;

// Shared with the pool's tasks: one that starts late, when all is done, finds nothing left and touches
// nothing else.
struct Loop {
  Loop(size_t count, const std::function<void(size_t)>& body) : count(count), body(body) {}

  void Run() {
    size_t finished = 0;
    for (size_t i = next++; i < count; i = next++) {
      body(i);
      ++finished;
    }
    if (finished == 0) return;
    MutexLock lock(&mu);
    done += finished;
    if (done == count) all_done.NotifyAll();
  }

  void Await() {
    MutexLock lock(&mu);
    while (done < count) all_done.Wait(&mu);
  }

  const size_t count;
  const std::function<void(size_t)>& body;
  std::atomic<size_t> next = 0;

  Mutex mu;
  CondVar all_done;
  size_t done ABSL_GUARDED_BY(mu) = 0;
};

}  // namespace

int ThreadsOrDefault(int threads) {
  if (threads > 0) return threads;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

void ParallelFor(ThreadPool* pool, size_t count, const std::function<void(size_t)>& body) {
  if (count == 0) return;
  auto loop = std::make_shared<Loop>(count, body);
  const size_t helpers = std::min<size_t>(static_cast<size_t>(pool->threads()), count) - 1;
  for (size_t i = 0; i < helpers; ++i) pool->Schedule([loop] { loop->Run(); });
  loop->Run();
  loop->Await();
}

void RunOnThreads(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    try {
      others.emplace_back(body, i);
    } catch (const std::system_error&) {
      break;
    }
  }
  body(0);
  for (std::thread& thread : others) thread.join();
}

}  // namespace esker
