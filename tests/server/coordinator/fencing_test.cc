// P4: a rank of an older attempt that wakes up can write nothing that counts.
#include <atomic>
#include <random>
#include <thread>

#include "format/base/text.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

using Fencing = CoordinatorTest;
constexpr auto kDenied = absl::StatusCode::kPermissionDenied;

TEST_F(Fencing, EveryCallOfAnOlderAttemptIsRefused) {
  OpenRun("first");
  const v1::SaveContext zombie = Begin(1, 1, 0, 2);
  const v1::ReportPartRequest report = Seal(zombie);
  OpenRun("second");
  const std::string both = "belongs to attempt 1, but attempt 2 has been opened since";
  EXPECT_STATUS(TryOpenRun("first"), kDenied, both);
  EXPECT_STATUS(TryBegin(1, 1, 0, 2), kDenied, both);
  EXPECT_STATUS(TryBegin(1, 2, 0, 2), kDenied, both);
  EXPECT_STATUS(coordinator_->CheckSaveOpen(zombie), kDenied, both);
  EXPECT_STATUS(TryReport(report), kDenied, both);
  EXPECT_STATUS(Abort(zombie, "x"), kDenied, both);
  // Its save is over; it may know how.
  EXPECT_EQ(Poll(zombie)->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(Poll(zombie)->reason(), "attempt 2 of the run was opened");
  // Once the step is saved anew there is nothing left of it.
  const v1::SaveContext fresh = Begin(2, 1, 0, 1);
  EXPECT_STATUS(Poll(zombie), absl::StatusCode::kNotFound, "replaced by a later save");
  EXPECT_STATUS(TryReport(report), kDenied, both);
  Report(Seal(fresh));
  EXPECT_STATUS(TryReport(report), kDenied, both);
  EXPECT_STATUS(Abort(zombie, "x"), kDenied, both);
  EXPECT_EQ(Committed(1), RefOfContext(fresh));
}

TEST_F(Fencing, AnOlderAttemptCanNotUseTheSaveOfANewerOne) {
  OpenRun("first");
  OpenRun("second");
  v1::SaveContext stolen = Begin(2, 1, 0, 1);
  const v1::ReportPartRequest report = Seal(stolen);
  stolen.set_attempt(1);
  v1::ReportPartRequest forged = report;
  *forged.mutable_save() = stolen;
  EXPECT_STATUS(coordinator_->CheckSaveOpen(stolen), kDenied, "attempt 1");
  EXPECT_STATUS(TryReport(forged), kDenied, "attempt 1");
  EXPECT_STATUS(Abort(stolen, "x"), kDenied, "attempt 1");
  EXPECT_STATUS(Poll(stolen), absl::StatusCode::kInvalidArgument, "belongs to attempt 2, not to attempt 1");
  Report(report);
  EXPECT_EQ(Steps(), "1");
}

TEST_F(Fencing, ARankOfAnOlderAttemptLearnsThatItsSaveWasCommitted) {
  OpenRun("first");
  const std::vector<v1::SaveContext> saves = Save(1, 1);
  OpenRun("second");
  EXPECT_EQ(Poll(saves[0])->state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Fencing, OpeningANewAttemptAbortsTheSavesOfOlderOnes) {
  OpenRun("first");
  const v1::SaveContext one = Begin(1, 1, 0, 2);
  const v1::SaveContext two = Begin(1, 2, 0, 2);
  OpenRun("x", "other");
  const v1::SaveContext other = Begin(1, 1, 0, 2, "other");
  Waiting waiting = Wait(one, 60'000);
  OpenRun("second");
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(waiting.Await()->reason(), "attempt 2 of the run was opened");
  EXPECT_EQ(Poll(two)->state(), v1::SaveStatus::ABORTED);
  EXPECT_OK(coordinator_->CheckSaveOpen(other));
  ASSERT_EQ(store_->OpenSaves().size(), 1u);
  EXPECT_EQ(store_->OpenSaves()[0].first, RefOfContext(other));
  OpenRun("second");
  EXPECT_OK(coordinator_->CheckSaveOpen(other));
}

TEST_F(Fencing, ANewAttemptReplacesASaveThatTheOlderLeftUnderWay) {
  OpenRun("first");
  const v1::SaveContext old = Begin(1, 1, 0, 2);
  Waiting waiting = Wait(old, 60'000);
  // The new attempt is opened, but the catalog fails before the old save is aborted.
  catalog_->FailFrom(1, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryOpenRun("second").ok());
  catalog_->Heal();
  const v1::SaveContext fresh = Begin(2, 1, 0, 1);
  EXPECT_NE(fresh.save_id(), old.save_id());
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  Report(Seal(fresh));
  EXPECT_EQ(Committed(1), RefOfContext(fresh));
}

TEST_F(Fencing, ASaveThatAFailedOpenRunLeftUnderWayIsAbortedByItself) {
  OpenRun("first");
  const v1::SaveContext old = Begin(1, 1, 0, 2);
  Waiting waiting = Wait(old, 60'000);
  catalog_->FailFrom(1, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryOpenRun("second").ok());
  EXPECT_STATUS(coordinator_->CheckSaveOpen(old), kDenied, "attempt 1");
  EXPECT_STATUS(Wait(old, 1000).Await(), kDenied, "attempt 1");
  catalog_->Heal();
  coordinator_->Tick();
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->reason(), "attempt 2 of the run was opened");
}

TEST_F(Fencing, AnAttemptThatIsOpenedJustBeforeTheCommitWins) {
  OpenRun("first");
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  Waiting waiting = Wait(report.save(), 60'000);
  catalog_->BeforeChangeOf("ckpt/", [&] {
    const absl::StatusOr<v1::OpenRunResponse> opened = TryOpenRun("second");
    ASSERT_OK(opened);
    EXPECT_FALSE(opened->has_latest());
  });
  EXPECT_STATUS(TryReport(report), kDenied, "attempt 1");
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(Steps(), "");
}

// The same, but the abort of the old save fails: the commit itself must find that it is fenced out.
TEST_F(Fencing, ACommitThatLosesToANewAttemptAbortsItself) {
  OpenRun("first");
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  Waiting waiting = Wait(report.save(), 60'000);
  catalog_->BeforeChangeOf("ckpt/", [&] {
    catalog_->FailFrom(1, FaultyCatalog::Fault::kRefuse);
    EXPECT_FALSE(TryOpenRun("second").ok());
    catalog_->Heal();
  });
  EXPECT_STATUS(TryReport(report), kDenied, "attempt 1");
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(waiting.Await()->reason(), "attempt 2 of the run was opened");
  EXPECT_EQ(Steps(), "");
}

// Whatever the interleaving: if the old attempt is told "committed", the new one saw the step when it was
// opened.
TEST_F(Fencing, ACommitAndANewAttemptExcludeEachOther) {
  std::mt19937_64 random(TestSeed());
  uint64_t attempt = OpenRun("start 0");
  int committed = 0;
  int refused = 0;
  for (int round = 1; round <= 120; ++round) {
    const uint64_t step = static_cast<uint64_t>(round);
    const v1::ReportPartRequest first = Seal(Begin(attempt, step, 0, 2));
    const v1::ReportPartRequest last = Seal(Begin(attempt, step, 1, 2));
    Report(first);
    const auto pause = [](uint64_t turns) {
      for (uint64_t i = 0; i < turns; ++i) std::this_thread::yield();
    };
    const uint64_t before_report = random() % 200;
    const uint64_t before_open = random() % 200;
    std::atomic<bool> go = false;
    absl::StatusOr<v1::SaveStatus> report = absl::UnknownError("not run");
    absl::StatusOr<v1::OpenRunResponse> opened = absl::UnknownError("not run");
    std::thread old_attempt([&] {
      while (!go) {
      }
      pause(before_report);
      report = TryReport(last);
    });
    std::thread new_attempt([&] {
      while (!go) {
      }
      pause(before_open);
      opened = TryOpenRun(StrCat("start ", round));
    });
    go = true;
    old_attempt.join();
    new_attempt.join();
    ASSERT_OK(opened);
    attempt = opened->attempt();
    const bool was_committed = opened->has_latest() && opened->latest_step() == step;
    if (report.ok()) {
      EXPECT_EQ(report->state(), v1::SaveStatus::COMMITTED);
      EXPECT_TRUE(was_committed) << "round " << round;
      ++committed;
    } else {
      EXPECT_STATUS(report, report.status().code() == kDenied ? kDenied : absl::StatusCode::kAborted,
                    "attempt");
    }
    // A commit whose answer came too late is refused, though it counts; otherwise the two agree.
    const absl::StatusOr<v1::SaveStatus> end = Poll(last.save());
    ASSERT_OK(end);
    EXPECT_EQ(end->state(), was_committed ? v1::SaveStatus::COMMITTED : v1::SaveStatus::ABORTED);
    EXPECT_EQ(Get(step).ok(), was_committed) << "round " << round;
    refused += was_committed ? 0 : 1;
  }
  std::printf("%d committed, %d refused\n", committed, refused);
}

}  // namespace
}  // namespace esker::testing
