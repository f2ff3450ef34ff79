// Many ranks, many waits, many checkpoints.
#include <atomic>
#include <thread>

#include "format/base/text.h"
#include "format/envelope.h"
#include "format/names.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

constexpr uint32_t kRanks = 1000;
constexpr uint32_t kThreads = 8;

class Scale : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    OpenRun("start");
  }
  // Calls `act` for each rank, from eight threads.
  static void ForEachRank(const std::function<void(uint32_t)>& act) {
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (uint32_t rank = t; rank < kRanks; rank += kThreads) act(rank);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

TEST_F(Scale, AThousandRanksFromEightThreadsCommitOnce) {
  std::vector<v1::ReportPartRequest> reports(kRanks);
  std::vector<Waiting> waits(kRanks);
  std::atomic<int> committed = 0;
  ForEachRank([&](uint32_t rank) {
    EXPECT_EQ(OpenRun("start"), 1u);
    const v1::SaveContext save = Begin(1, 1, rank, kRanks);
    reports[rank] = Seal(save, "the same");
  });
  ForEachRank([&](uint32_t rank) {
    waits[rank] = Wait(reports[rank].save(), 60'000);
    if (Report(reports[rank]).state() == v1::SaveStatus::COMMITTED) ++committed;
  });
  EXPECT_EQ(committed, 1) << "only the last one in commits";
  for (Waiting& wait : waits) {
    ASSERT_TRUE(wait.answered());
    EXPECT_EQ(wait.Await()->state(), v1::SaveStatus::COMMITTED);
  }
  EXPECT_EQ(Get(1)->record().world_size(), kRanks);
  // All report again, as after a restart.
  RestartCoordinator();
  ForEachRank([&](uint32_t rank) { EXPECT_EQ(Report(reports[rank]).state(), v1::SaveStatus::COMMITTED); });
}

TEST_F(Scale, AThousandWaitsThatRunOutAreAllAnswered) {
  std::vector<v1::SaveContext> saves(1, Begin(1, 1, 0, kRanks));
  std::vector<Waiting> waits(kRanks);
  ForEachRank([&](uint32_t rank) {
    v1::SaveContext save = saves[0];
    save.set_rank(rank);
    waits[rank] = Wait(save, 1 + rank % 100);
  });
  Pass(50);
  for (uint32_t rank = 0; rank < kRanks; ++rank) EXPECT_EQ(waits[rank].answered(), rank % 100 < 50) << rank;
  Pass(50);
  for (Waiting& wait : waits) EXPECT_TRUE(wait.answered());
}

TEST_F(Scale, AThousandCheckpointsAreListedFoundAndRetained) {
  // Records as commits leave them; to save them all would only test the store.
  Save(1, 5000);
  std::string expected;
  for (uint64_t step = 0; step < 1000; step += 20) {
    std::vector<CatalogMutation> mutations;
    for (uint64_t i = step; i < step + 20; ++i) {
      v1::CheckpointRecord record = Get(5000)->record();
      record.set_step(i);
      record.set_save_id(i + 1);
      mutations.push_back({CheckpointKey(kRun, i), EncodeEnvelope(EnvelopeKind::kCheckpoint, record)});
      expected += StrCat(i, " ");
    }
    ASSERT_OK(catalog_->CompareAndSet({}, mutations));
  }
  EXPECT_EQ(Steps(), expected + "5000");
  v1::GetCheckpointRequest latest;
  latest.set_run(kRun);
  latest.set_latest(true);
  EXPECT_EQ(coordinator_->GetCheckpoint(latest)->record().step(), 5000u);
  EXPECT_STATUS(Get(1000), absl::StatusCode::kNotFound,
                "it has 1001, of the steps 0, 1, 2, ..., 998, 999, 5000");
  v1::CollectGarbageRequest request;
  request.set_run(kRun);
  request.mutable_policy()->set_keep_every(100);
  EXPECT_EQ(Collect(request).deleted_size(), 990);
  EXPECT_EQ(Steps(), "0 100 200 300 400 500 600 700 800 900 5000");
}

}  // namespace
}  // namespace esker::testing
