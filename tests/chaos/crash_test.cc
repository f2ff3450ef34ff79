// Kills eskerd with SIGKILL at random instants under load, starts it again, and checks the promises: what was
// acknowledged restores bit for bit (P2), nothing half-made is listed (P1), and the space accounting agrees
// with the disk (P5).
//   ESKER_CRASH_ROUNDS  kills (200)
//   ESKER_TEST_SEED     replays the schedule, as far as real processes allow
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "format/base/mutex.h"
#include "server/store/store.h"
#include "tests/chaos/run_worker.h"
#include "tests/integration/process_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

constexpr int kWorkers = 3;
constexpr uint64_t kMiB = 1 << 20;

uint64_t Rounds(uint64_t by_default) {
  const char* given = std::getenv("ESKER_CRASH_ROUNDS");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : by_default;
}

// Lets worker threads run, and holds all of them between two operations.
class Gate {
 public:
  // Of a worker, before each operation. Waits while the gate is closed; false: the test is over.
  bool Pass() {
    MutexLock lock(&mu_);
    while (!open_ && !over_) changed_.Wait(&mu_);
    if (!over_) ++inside_;
    return !over_;
  }
  void Leave() {
    MutexLock lock(&mu_);
    --inside_;
    changed_.NotifyAll();
  }
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  // Returns when no operation is under way.
  void Close() {
    MutexLock lock(&mu_);
    open_ = false;
    while (inside_ > 0) changed_.Wait(&mu_);
  }
  void End() {
    MutexLock lock(&mu_);
    over_ = true;
    changed_.NotifyAll();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool over_ ABSL_GUARDED_BY(mu_) = false;
  int inside_ ABSL_GUARDED_BY(mu_) = 0;
};

class Crash : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    random_.seed(TestSeed());
    spdlog::set_level(spdlog::level::warn);  // of the stores that CheckStore opens here
    ServerProcess::Options options;
    options.data_directory = dir_ / "data";
    options.engine = GetParam();
    // After a start nothing is collected for a lease's time: with a long one the server would die before it
    // collects.
    options.read_lease_ttl = "200ms";
    server_ = std::make_unique<ServerProcess>(options);
    ASSERT_OK(server_->Start());
    for (int i = 0; i < kWorkers; ++i) {
      workers_.push_back(std::make_unique<RunWorker>(server_->address(), absl::StrCat("run-", i), random_()));
      threads_.emplace_back([this, worker = workers_.back().get()] {
        while (gate_.Pass()) {
          worker->Operate();
          gate_.Leave();
        }
      });
    }
  }
  void TearDown() override {
    gate_.End();
    for (std::thread& thread : threads_) thread.join();
    if (HasFailure()) std::printf("--- the end of eskerd's log:\n%s\n", Tail(server_->Log()).c_str());
  }

  static std::string Tail(const std::string& log) {
    return log.substr(log.size() - std::min<size_t>(log.size(), 8000));
  }
  void SleepUpTo(uint64_t least_ms, uint64_t most_ms) {
    std::this_thread::sleep_for(
        std::chrono::microseconds(least_ms * 1000 + random_() % ((most_ms - least_ms) * 1000)));
  }

  // Opens the store that the killed server left, here: recovery, and then a recount of everything.
  void CheckStore() {
    StoreOptions options;
    options.directory = server_->data_directory();
    options.segment_bytes = server_->options().segment_mib * kMiB;
    options.buffer_pool_bytes = server_->options().buffer_pool_mib * kMiB;
    options.recycle_bytes = server_->options().recycle_mib * kMiB;
    options.min_free_bytes = server_->options().min_free_mib * kMiB;
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Store> store, Store::Open(options));
    ASSERT_OK(store->CheckConsistency());
    ASSERT_OK_AND_ASSIGN(const StoreStats stats, store->Stats());
    ++stores_checked_;
    EXPECT_EQ(stats.reserved_bytes, 0u);
    EXPECT_THAT(stats.failed_segments, ::testing::IsEmpty());
    // What the store says it takes is what the file system says; and it is no more than what lives, what is
    // kept for new data, and the segment that is being filled.
    const uint64_t on_disk = DiskBytes(server_->data_directory() + "/segments");
    EXPECT_NEAR(static_cast<double>(stats.allocated_bytes), static_cast<double>(on_disk), 1.0 * kMiB);
    EXPECT_GE(on_disk + kMiB, stats.live_bytes);
    EXPECT_LE(on_disk, stats.live_bytes + options.recycle_bytes + 2 * options.segment_bytes);
  }

  void Verify(size_t samples) {
    std::vector<std::thread> verifiers;
    for (const auto& worker : workers_) verifiers.emplace_back([&] { worker->Verify(samples); });
    for (std::thread& verifier : verifiers) verifier.join();
    for (const auto& worker : workers_) ASSERT_THAT(worker->violations(), ::testing::IsEmpty());
  }

  RunWorker::Counts Counts() const {
    RunWorker::Counts sum;
    for (const auto& worker : workers_) {
      const RunWorker::Counts& counts = worker->counts();
      sum.saves_acknowledged += counts.saves_acknowledged;
      sum.saves_failed += counts.saves_failed;
      sum.doubtful_found += counts.doubtful_found;
      sum.doubtful_absent += counts.doubtful_absent;
      sum.checkpoints_restored += counts.checkpoints_restored;
      sum.bytes_restored += counts.bytes_restored;
      sum.deletions += counts.deletions;
      sum.parts_collected += counts.parts_collected;
    }
    return sum;
  }
  void PrintProgress(uint64_t kills) const {
    const RunWorker::Counts counts = Counts();
    std::printf("%s\n",
                absl::StrCat(kills, " kills: ", counts.saves_acknowledged, " saves acknowledged, ",
                             counts.saves_failed, " given up; of what was doubtful ", counts.doubtful_found,
                             " were whole and ", counts.doubtful_absent, " absent; ",
                             counts.checkpoints_restored, " restores of ", counts.bytes_restored / kMiB,
                             " MiB compared; ", counts.deletions, " deletions, ", counts.parts_collected,
                             " parts collected; ", stores_checked_, " recounts of the store")
                    .c_str());
    std::fflush(stdout);
  }

  // Everything restores; then everything is deleted, and nothing must be left of it.
  void ExpectCleanEnd() {
    ASSERT_NO_FATAL_FAILURE(Verify(SIZE_MAX));
    for (const auto& worker : workers_) {
      worker->DeleteAll();
      ASSERT_THAT(worker->violations(), ::testing::IsEmpty());
    }
    RawClient client(server_->address());
    // Readers of before the last restart keep what is deleted for a lease's time.
    v1::StatusResponse status;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    do {
      ASSERT_OK(client.CollectGarbage());
      ASSERT_OK_AND_ASSIGN(status, client.ServerStatus());
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    } while (status.parts() > 0 && std::chrono::steady_clock::now() < deadline);
    EXPECT_EQ(status.parts(), 0u);
    EXPECT_EQ(status.chunks(), 0u);
    EXPECT_EQ(status.layouts(), 0u);
    EXPECT_EQ(status.live_bytes(), 0u);
    EXPECT_EQ(status.reserved_bytes(), 0u);
    server_->Kill();
    ASSERT_NO_FATAL_FAILURE(CheckStore());
  }

  TempDir dir_;
  std::mt19937_64 random_;
  std::unique_ptr<ServerProcess> server_;
  std::vector<std::unique_ptr<RunWorker>> workers_;
  Gate gate_;
  std::vector<std::thread> threads_;
  uint64_t stores_checked_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Engines, Crash, ::testing::Values("io_uring", "threads"),
                         [](const auto& info) { return info.param; });

TEST_P(Crash, KilledAtRandomInstantsUnderLoadNothingIsLost) {
  const uint64_t rounds = (Rounds(200) + 1) / 2;  // on each of the two engines
  for (uint64_t round = 1; round <= rounds; ++round) {
    gate_.Open();
    SleepUpTo(5, 150);
    server_->Kill();
    // Half of the time the recovery is watched from inside; else eskerd itself has to do it.
    if (random_() % 2 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckStore()) << "round " << round;
    }
    // Saves under way go on as soon as the server is back.
    ASSERT_OK(server_->Start());
    gate_.Close();
    ASSERT_NO_FATAL_FAILURE(Verify(2)) << "round " << round;
    if (round % 25 == 0) PrintProgress(round);
  }
  ASSERT_NO_FATAL_FAILURE(ExpectCleanEnd());
  PrintProgress(rounds);
  const RunWorker::Counts counts = Counts();
  EXPECT_GT(counts.saves_acknowledged, rounds / 2);
  EXPECT_GT(counts.checkpoints_restored, rounds);
  EXPECT_GT(counts.parts_collected, 0u);
}

TEST_P(Crash, KilledAgainWhileItRecoversNothingIsLost) {
  const uint64_t storms = (Rounds(200) + 39) / 40;
  uint64_t kills = 0, kills_while_starting = 0;
  for (uint64_t storm = 0; storm < storms; ++storm) {
    gate_.Open();
    SleepUpTo(50, 300);
    server_->Kill();
    for (int again = 0; again < 8; ++again) {
      ASSERT_OK(server_->Launch());
      // A start takes some 100 ms; under a sanitizer longer.
      SleepUpTo(1, 150);
      kills_while_starting += server_->Serving() ? 0 : 1;
      ++kills;
      server_->Kill();
    }
    ASSERT_NO_FATAL_FAILURE(CheckStore()) << "storm " << storm;
    ASSERT_OK(server_->Start());
    gate_.Close();
    ASSERT_NO_FATAL_FAILURE(Verify(4)) << "storm " << storm;
  }
  std::printf("%llu kills, %llu of them before the server took connections\n",
              static_cast<unsigned long long>(kills), static_cast<unsigned long long>(kills_while_starting));
  EXPECT_GT(kills_while_starting, 0u);
  ASSERT_NO_FATAL_FAILURE(ExpectCleanEnd());
  PrintProgress(kills);
}

}  // namespace
}  // namespace esker::testing
