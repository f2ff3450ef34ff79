#include "client/parallel.h"

#include <atomic>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(ParallelFor, DoesEachOnce) {
  ThreadPool pool(3, "test");
  for (const size_t count : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> times(count);
    ParallelFor(&pool, count, [&](size_t i) { ++times[i]; });
    for (const std::atomic<int>& t : times) EXPECT_EQ(t, 1);
  }
}

TEST(ParallelFor, NeedsNoThreadOfThePool) {
  ThreadPool pool(1, "test");
  Mutex mu;
  mu.Lock();
  pool.Schedule([&] { MutexLock wait(&mu); });
  int done = 0;
  ParallelFor(&pool, 10, [&](size_t) { ++done; });
  EXPECT_EQ(done, 10);
  mu.Unlock();
}

TEST(RunOnThreads, RunsEachNumberOnce) {
  std::vector<std::atomic<int>> times(4);
  RunOnThreads(4, [&](int i) { ++times[static_cast<size_t>(i)]; });
  for (const std::atomic<int>& t : times) EXPECT_EQ(t, 1);
}

TEST(ThreadsOrDefault, IsBounded) {
  EXPECT_EQ(ThreadsOrDefault(3), 3);
  EXPECT_GE(ThreadsOrDefault(0), 1);
  EXPECT_LE(ThreadsOrDefault(0), 8);
}

}  // namespace
}  // namespace esker::testing
