// The coordinator keeps nothing in memory that the ranks can't send again: it is destroyed at every point of
// a save.
#include <functional>

#include "format/base/text.h"
#include "format/hash.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class Restart : public CoordinatorTest {
 protected:
  // A whole save of three ranks as a list of calls; each gives `after` the chance to restart something.
  void SaveInSteps(const std::function<void(int)>& after) {
    int point = 0;
    OpenRun("start");
    after(point++);
    std::vector<v1::SaveContext> saves;
    for (uint32_t rank = 0; rank < 3; ++rank) {
      saves.push_back(Begin(1, 1, rank, 3));
      after(point++);
    }
    std::vector<v1::ReportPartRequest> reports;
    for (const v1::SaveContext& save : saves) {
      reports.push_back(Seal(save));
      after(point++);
    }
    for (const v1::ReportPartRequest& report : reports) {
      Report(report);
      after(point++);
    }
    points_ = point;
    // What each rank does: it waits, and reports again if the coordinator does not know of its report.
    for (const v1::ReportPartRequest& report : reports) {
      if (!Poll(report.save())->this_rank_reported()) Report(report);
    }
    for (const v1::SaveContext& save : saves) EXPECT_EQ(Poll(save)->state(), v1::SaveStatus::COMMITTED);
    EXPECT_EQ(Committed(1), RefOfContext(saves[0]));
    ExpectReadable(RefOfContext(saves[0]), 3);
  }

  // Everything of the last round is removed.
  void Clear() {
    ASSERT_OK(Delete(1));
    Collect();
    TearDownServer();
  }
  void TearDownServer() {
    coordinator_.reset();
    store_.reset();
    catalog_.reset();
    rocks_.reset();
    std::filesystem::remove_all(directory_ / "catalog");
    std::filesystem::remove_all(directory_ / "store");
    ASSERT_NO_FATAL_FAILURE(RestartServer());
  }

  int points_ = 1;
};

TEST_F(Restart, OfTheCoordinatorAtEveryPointLosesNothing) {
  for (int restart_at = 0; restart_at < points_; ++restart_at) {
    SCOPED_TRACE(StrCat("restart after call ", restart_at));
    SaveInSteps([&](int point) {
      if (point == restart_at) RestartCoordinator();
    });
    ASSERT_FALSE(HasFailure());
    TearDownServer();
  }
  EXPECT_EQ(points_, 10);
}

TEST_F(Restart, OfTheServerAtEveryPointLosesNothingThatWasSealed) {
  // Chunks that were put and not sealed are forgotten with the store; here each part is put and sealed in one
  // call.
  for (int restart_at = 0; restart_at < points_; ++restart_at) {
    SCOPED_TRACE(StrCat("restart after call ", restart_at));
    SaveInSteps([&](int point) {
      if (point == restart_at) RestartServer();
    });
    ASSERT_FALSE(HasFailure());
    TearDownServer();
  }
}

TEST_F(Restart, AfterEveryCallLosesNothing) {
  SaveInSteps([&](int) { RestartCoordinator(); });
}

// Each change of the catalog fails once, before or after it was applied, and the coordinator dies with it.
TEST_F(Restart, InTheMiddleOfEachChangeOfTheCatalogLosesNothing) {
  for (const FaultyCatalog::Fault fault :
       {FaultyCatalog::Fault::kRefuse, FaultyCatalog::Fault::kApplyThenFail}) {
    for (int nth = 0; nth < 3; ++nth) {
      SCOPED_TRACE(StrCat("change ", nth,
                          fault == FaultyCatalog::Fault::kRefuse ? " refused" : " applied, then failed"));
      int failures = 0;
      // A call that fails is made again with a new coordinator, as the client does.
      const auto insist = [&](auto call) {
        auto result = call();
        for (int tries = 0; !result.ok() && tries < 2; ++tries) {
          ++failures;
          catalog_->Heal();
          RestartCoordinator();
          result = call();
        }
        return result;
      };
      catalog_->FailFrom(nth, fault);
      EXPECT_EQ(insist([&] { return TryOpenRun("start"); })->attempt(), 1u);
      std::vector<v1::SaveContext> saves;
      for (uint32_t rank = 0; rank < 2; ++rank) {
        saves.push_back(*insist([&] { return TryBegin(1, 1, rank, 2); }));
      }
      std::vector<v1::ReportPartRequest> reports;
      for (const v1::SaveContext& save : saves) reports.push_back(Seal(save));
      for (const v1::ReportPartRequest& report : reports)
        EXPECT_OK(insist([&] { return TryReport(report); }));
      for (const v1::ReportPartRequest& report : reports) {
        if (!Poll(report.save())->this_rank_reported()) Report(report);
      }
      EXPECT_EQ(failures, 1);
      EXPECT_EQ(Committed(1), RefOfContext(saves[0]));
      ExpectReadable(RefOfContext(saves[0]), 2);
      ASSERT_FALSE(HasFailure());
      TearDownServer();
    }
  }
}

TEST_F(Restart, ARankIsAskedToReportAgain) {
  OpenRun("start");
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 2));
  EXPECT_TRUE(Report(report).this_rank_reported());
  RestartCoordinator();
  const v1::SaveStatus status = *Poll(report.save());
  EXPECT_EQ(status.state(), v1::SaveStatus::SAVING);
  EXPECT_FALSE(status.this_rank_reported());
  EXPECT_EQ(status.reported(), 0u);
  EXPECT_EQ(status.missing_ranks_size(), 2);
  EXPECT_EQ(Report(report).reported(), 1u);
}

TEST_F(Restart, TheTimeOfASaveCountsFromTheStartOfTheProcess) {
  OpenRun("start");
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  clock_.Advance(299'999);
  RestartServer();
  Pass(299'999);
  EXPECT_EQ(Poll(save)->state(), v1::SaveStatus::SAVING);
  Pass(1);
  EXPECT_EQ(Poll(save)->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(Poll(save)->reason(), "no rank sent anything for 5m: 0 of 2 ranks have reported; missing: 0, 1");
}

TEST_F(Restart, TheReasonOfAnAbortIsStillKnown) {
  OpenRun("start");
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  ASSERT_OK(Abort(save, "disk on fire"));
  RestartServer();
  EXPECT_EQ(Poll(save)->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(Poll(save)->reason(), "rank 0: disk on fire");
}

TEST_F(Restart, ACommitThatGotAsFarAsItsManifestUsesItAgain) {
  OpenRun("start");
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  const int64_t manifest_unix_ms = clock_.UnixMillis();
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryReport(report).ok());
  ASSERT_OK(store_->GetManifest(RefOfContext(report.save())));
  clock_.Advance(1000);
  RestartServer();
  EXPECT_EQ(Report(report).state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(Get(1)->record().committed_unix_ms(), manifest_unix_ms);
}

TEST_F(Restart, AManifestOfOtherPartsIsNeverCommitted) {
  OpenRun("start");
  v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  report.mutable_servers(0)->set_id("another-server");
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryReport(report).ok());
  RestartServer();
  v1::ReportPartRequest other = report;
  other.mutable_part()->set_part_digest(std::string(16, 'x'));
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists, "names other parts");
  EXPECT_EQ(Steps(), "");
  Pass(300'000);
  EXPECT_THAT(Poll(report.save())->reason(), ::testing::HasSubstr("but it can't be committed"));
  Save(1, 1);
}

TEST_F(Restart, AnAttemptOpenedInBetweenFencesTheSavesFound) {
  OpenRun("start");
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->FailFrom(1, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryOpenRun("second").ok());
  RestartServer();
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kPermissionDenied, "attempt 1");
  coordinator_->Tick();
  EXPECT_EQ(Poll(report.save())->state(), v1::SaveStatus::ABORTED);
}

}  // namespace
}  // namespace esker::testing
