// P5: collection never frees what a live checkpoint, a save under way or a read can reach, and frees all
// else.
#include <atomic>
#include <random>
#include <thread>

#include "format/base/text.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class Garbage : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    OpenRun("start");
  }
  static v1::CollectGarbageRequest KeepLast(uint64_t keep_last, bool dry_run = false,
                                            const std::string& run = kRun) {
    v1::CollectGarbageRequest request;
    request.set_run(run);
    request.mutable_policy()->set_keep_last(keep_last);
    request.set_dry_run(dry_run);
    return request;
  }
  void SetPolicy(uint64_t keep_last, const std::string& run = kRun) {
    v1::SetRetentionRequest request;
    request.set_run(run);
    request.mutable_policy()->set_keep_last(keep_last);
    ASSERT_OK(coordinator_->SetRetention(request));
  }
  size_t SavesHeld() { return store_->ListSaves()->size(); }
};

TEST_F(Garbage, NothingIsDeletedWithoutAPolicy) {
  for (uint64_t step = 1; step <= 3; ++step) Save(1, step);
  const v1::CollectGarbageResponse response = Collect();
  EXPECT_EQ(response.deleted_size(), 0);
  EXPECT_EQ(response.report().parts_removed(), 0u);
  EXPECT_EQ(Steps(), "1 2 3");
  for (uint64_t step = 1; step <= 3; ++step) ExpectReadable(Committed(step), 2);
}

TEST_F(Garbage, APolicyDeletesAndTheSpaceIsFreed) {
  for (uint64_t step = 1; step <= 4; ++step) Save(1, step);
  const v1::CollectGarbageResponse response = Collect(KeepLast(2));
  ASSERT_EQ(response.deleted_size(), 2);
  EXPECT_EQ(response.deleted(0).step(), 1u);
  EXPECT_EQ(response.deleted(1).step(), 2u);
  EXPECT_EQ(response.report().parts_removed(), 4u);
  EXPECT_EQ(response.report().chunks_removed(), 4u);
  EXPECT_EQ(response.report().chunk_bytes_removed(), 4u * 4096);
  EXPECT_EQ(Steps(), "3 4");
  EXPECT_EQ(ListAll().checkpoints_size(), 2)
      << "nothing is left of the deleted ones, so neither are their records";
  EXPECT_EQ(SavesHeld(), 2u);
  for (uint64_t step = 3; step <= 4; ++step) ExpectReadable(Committed(step), 2);
}

TEST_F(Garbage, ChunksThatAKeptCheckpointSharesStay) {
  Report(Seal(Begin(1, 1, 0, 1), "frozen"));
  Report(Seal(Begin(1, 2, 0, 1), "frozen"));
  const v1::CollectGarbageResponse response = Collect(KeepLast(1));
  EXPECT_EQ(response.report().parts_removed(), 1u);
  EXPECT_EQ(response.report().chunks_removed(), 0u);
  ExpectReadable(Committed(2), 1);
}

TEST_F(Garbage, EachRunsOwnPolicyIsApplied) {
  OpenRun("x", "other");
  for (uint64_t step = 1; step <= 3; ++step) {
    Save(1, step, 1);
    Save(1, step, 1, "other");
  }
  SetPolicy(1);
  EXPECT_EQ(Collect().deleted_size(), 2);
  EXPECT_EQ(Steps(), "3");
  EXPECT_EQ(Steps("other"), "1 2 3");
  Collect(KeepLast(2, false, "other"));
  EXPECT_EQ(Steps("other"), "2 3");
  v1::CollectGarbageRequest all = KeepLast(1);
  all.clear_run();
  EXPECT_EQ(Collect(all).deleted_size(), 1);
  EXPECT_EQ(Steps("other"), "3");
}

TEST_F(Garbage, OnlyTheRunAskedForIsCollected) {
  OpenRun("x", "other");
  Save(1, 1, 1);
  const std::vector<v1::SaveContext> other = Save(1, 1, 1, "other");
  v1::DeleteCheckpointRequest request;
  request.set_run("other");
  request.set_step(1);
  ASSERT_OK(coordinator_->DeleteCheckpoint(request));
  Collect(KeepLast(1));
  EXPECT_TRUE(StoreHas(RefOfContext(other[0])));
  Collect();
  EXPECT_FALSE(StoreHas(RefOfContext(other[0])));
  v1::CollectGarbageRequest unknown;
  unknown.set_run("unknown");
  EXPECT_STATUS(coordinator_->CollectGarbage(unknown), absl::StatusCode::kNotFound,
                "there is no run unknown");
  unknown.set_run("../x");
  EXPECT_STATUS(coordinator_->CollectGarbage(unknown), absl::StatusCode::kInvalidArgument, "run name");
}

TEST_F(Garbage, PinnedAndNewestOnesAreKept) {
  for (uint64_t step = 1; step <= 4; ++step) Save(1, step);
  ASSERT_OK(Pin(2));
  EXPECT_EQ(Collect(KeepLast(1)).deleted_size(), 2);
  EXPECT_EQ(Steps(), "2 4");
  ExpectReadable(Committed(2), 2);
  ASSERT_OK(Pin(2, false));
  Collect(KeepLast(1));
  EXPECT_EQ(Steps(), "4");
}

TEST_F(Garbage, ADryRunSaysWhatItWouldDoAndDoesNothing) {
  for (uint64_t step = 1; step <= 4; ++step) Save(1, step);
  ASSERT_OK(Delete(1));
  ASSERT_OK(Abort(Begin(1, 9, 0, 1), "enough"));
  clock_.Advance(3'600'000);
  const SaveRef read = Committed(2);
  const uint64_t lease = store_->OpenRead(read);
  const int changes = catalog_->changes();
  const v1::CollectGarbageResponse response = Collect(KeepLast(1, /*dry_run=*/true));
  EXPECT_EQ(catalog_->changes(), changes);
  ASSERT_EQ(response.deleted_size(), 2);
  EXPECT_EQ(response.deleted(0).step(), 2u);
  EXPECT_EQ(response.deleted(1).step(), 3u);
  ASSERT_EQ(response.kept_by_reader_size(), 1);
  EXPECT_EQ(response.kept_by_reader(0).step(), 2u);
  EXPECT_EQ(response.report().parts_removed(), 4u) << "of the deleted step 1 and of step 3";
  EXPECT_EQ(response.report().chunk_bytes_removed(), 0u);
  EXPECT_EQ(Steps(), "2 3 4");
  EXPECT_EQ(SavesHeld(), 4u);
  EXPECT_EQ(ListAll().saves_size(), 1);
  store_->CloseRead(lease);
}

TEST_F(Garbage, ASaveUnderWayIsKept) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  Report(Seal(save));
  Collect(KeepLast(1));
  ExpectReadable(RefOfContext(save), 1);
  RestartCoordinator();
  Collect(KeepLast(1));
  Report(Seal(save));
  Report(Seal(Begin(1, 1, 1, 2)));
  ExpectReadable(Committed(1), 2);
}

TEST_F(Garbage, AnAbortedSaveIsFreedAtOnceAndItsRecordKeptForAnHour) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  Report(Seal(save));
  ASSERT_OK(Abort(save, "enough"));
  // Nobody can be reading what never was committed, not even from before a restart.
  RestartServer();
  ASSERT_TRUE(store_->MayHaveUnknownReaders());
  EXPECT_EQ(Collect().report().parts_removed(), 1u);
  EXPECT_FALSE(StoreHas(RefOfContext(save)));
  EXPECT_EQ(ListAll().saves(0).record().reason(), "rank 0: enough");
  clock_.Advance(3'599'999);
  Collect();
  EXPECT_EQ(ListAll().saves_size(), 1);
  clock_.Advance(1);
  Collect();
  EXPECT_EQ(ListAll().saves_size(), 0);
}

TEST_F(Garbage, TheOldPartsOfAStepThatWasSavedAgainAreFreed) {
  const std::vector<v1::SaveContext> first = Save(1, 1);
  OpenRun("second");
  Save(2, 1);
  EXPECT_EQ(Collect().report().parts_removed(), 2u);
  EXPECT_FALSE(StoreHas(RefOfContext(first[0])));
  ExpectReadable(Committed(1), 2);
}

TEST_F(Garbage, WhatIsBeingReadIsKeptUntilTheReadEnds) {
  Save(1, 1);
  Save(1, 2);
  const SaveRef save = Committed(1);
  const uint64_t lease = store_->OpenRead(save);
  ASSERT_OK(coordinator_->CheckCommitted(save));
  v1::CollectGarbageResponse response = Collect(KeepLast(1));
  ASSERT_EQ(response.deleted_size(), 1);
  ASSERT_EQ(response.kept_by_reader_size(), 1);
  EXPECT_EQ(response.kept_by_reader(0).step(), 1u);
  EXPECT_EQ(Steps(), "2") << "no new reader gets it";
  ExpectReadable(save, 2);
  ASSERT_OK(store_->GetManifest(save));
  EXPECT_EQ(Collect().kept_by_reader_size(), 1);
  store_->CloseRead(lease);
  response = Collect();
  EXPECT_EQ(response.kept_by_reader_size(), 0);
  EXPECT_EQ(response.report().parts_removed(), 2u);
  EXPECT_EQ(ListAll().checkpoints_size(), 1);
}

TEST_F(Garbage, AfterARestartReadersOfBeforeAreWaitedFor) {
  Save(1, 1);
  Save(1, 2);
  const SaveRef save = Committed(1);
  RestartServer();
  EXPECT_EQ(Collect(KeepLast(1)).kept_by_reader_size(), 1);
  ExpectReadable(save, 2);
  clock_.Advance(30'001);
  EXPECT_EQ(Collect().kept_by_reader_size(), 0);
  EXPECT_FALSE(StoreHas(save));
}

TEST_F(Garbage, ARecordOfADeletedOneWithNothingLeftIsRemoved) {
  Save(1, 1);
  Save(1, 2);
  ASSERT_OK(Delete(1));
  ASSERT_OK(store_->RemoveSave(Committed(2)));  // its manifest and parts are lost
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_STATUS(coordinator_->CollectGarbage({}), absl::StatusCode::kUnavailable, "injected");
  EXPECT_EQ(SavesHeld(), 0u);
  catalog_->Heal();
  EXPECT_EQ(ListAll().checkpoints_size(), 2);
  Collect();
  EXPECT_EQ(ListAll().checkpoints_size(), 1) << "that of step 2 stays: it was not deleted";
}

TEST_F(Garbage, APinThatComesJustBeforeRetentionWins) {
  for (uint64_t step = 1; step <= 3; ++step) Save(1, step);
  catalog_->BeforeChangeOf("ckpt/", [&] { ASSERT_OK(Pin(1)); });
  const v1::CollectGarbageResponse response = Collect(KeepLast(1));
  ASSERT_EQ(response.deleted_size(), 1);
  EXPECT_EQ(response.deleted(0).step(), 2u);
  EXPECT_EQ(Steps(), "1 3");
  ExpectReadable(Committed(1), 2);
}

TEST_F(Garbage, ASaveThatReplacesADeletedRecordJustBeforeItsRemovalStays) {
  Save(1, 1, 1);
  Save(1, 2, 1);
  ASSERT_OK(Delete(1));
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->BeforeChangeOf("ckpt/", [&] { Report(report); });
  Collect();
  EXPECT_EQ(Steps(), "1 2");
  EXPECT_EQ(Committed(1), RefOfContext(report.save()));
  ExpectReadable(Committed(1), 1);
}

TEST_F(Garbage, DataOfARunThatTheCatalogDoesNotKnowIsNotTouched) {
  Save(1, 1);
  // The catalog's directory is lost, and the server starts with an empty one.
  coordinator_.reset();
  store_.reset();
  catalog_.reset();
  rocks_.reset();
  std::filesystem::remove_all(directory_ / "catalog");
  RestartServer();
  clock_.Advance(30'001);
  OpenRun("x", "another");
  EXPECT_STATUS(coordinator_->CollectGarbage({}), absl::StatusCode::kFailedPrecondition,
                "data of run llama, which the catalog does not know");
  EXPECT_EQ(SavesHeld(), 1u);
}

TEST_F(Garbage, IsCollectedByItselfWhenItIsTime) {
  options_.gc_interval_ms = 60'000;
  RestartCoordinator();
  SetPolicy(1);
  for (uint64_t step = 1; step <= 3; ++step) Save(1, step);
  coordinator_->Tick();
  EXPECT_EQ(Steps(), "1 2 3");
  Pass(59'999);
  EXPECT_EQ(Steps(), "1 2 3");
  Pass(1);
  EXPECT_EQ(Steps(), "3");
  EXPECT_EQ(SavesHeld(), 1u);
  Save(1, 4);
  Pass(59'999);
  EXPECT_EQ(Steps(), "3 4");
  Pass(1);
  EXPECT_EQ(Steps(), "4");
}

// Writers save and replace steps, a reader reads, while the collector runs all the time: nothing live is ever
// missing.
TEST_F(Garbage, CollectingWhileSavesCommitTakesNothingLive) {
  std::mt19937_64 random(TestSeed());
  constexpr int kRounds = 60;
  std::atomic<bool> stop = false;
  SetPolicy(3);
  std::thread collector([&] {
    while (!stop) Collect();
  });
  std::thread reader([&] {
    int reads = 0;
    while (!stop || reads == 0) {
      v1::GetCheckpointRequest request;
      request.set_run(kRun);
      request.set_latest(true);
      const absl::StatusOr<v1::GetCheckpointResponse> latest = coordinator_->GetCheckpoint(request);
      if (absl::IsNotFound(latest.status())) continue;  // before the first commit
      ASSERT_OK(latest);
      const SaveRef save{kRun, latest->record().step(), latest->record().save_id()};
      // As a restore does it: register, then check.
      const uint64_t lease = store_->OpenRead(save);
      if (coordinator_->CheckCommitted(save).ok()) {
        ExpectReadable(save, 2);
        ++reads;
      }
      store_->CloseRead(lease);
    }
  });
  uint64_t attempt = 1;
  for (int round = 1; round <= kRounds; ++round) {
    const uint64_t step = static_cast<uint64_t>(round) - (round > 3 ? random() % 3 : 0);
    if (random() % 4 == 0) attempt = OpenRun(StrCat("start ", round));
    const absl::StatusOr<v1::SaveContext> first = TryBegin(attempt, step, 0, 2);
    if (absl::IsAlreadyExists(first.status())) continue;
    ASSERT_OK(first);
    const v1::ReportPartRequest one = Seal(*first, StrCat("shared ", random() % 5));
    const v1::ReportPartRequest two = Seal(Begin(attempt, step, 1, 2), StrCat("own ", round));
    Report(one);
    if (random() % 5 == 0) {
      ASSERT_OK(Abort(*first, "now and then"));
      continue;
    }
    EXPECT_EQ(Report(two).state(), v1::SaveStatus::COMMITTED);
    // Of the steps so far at most two are higher: the policy keeps it.
    ExpectReadable(Committed(step), 2);
  }
  stop = true;
  collector.join();
  reader.join();
  Collect();
  EXPECT_LE(SavesHeld(), 3u) << "all else is freed";
}

}  // namespace
}  // namespace esker::testing
