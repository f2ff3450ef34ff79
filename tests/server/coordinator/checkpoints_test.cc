// Committed checkpoints: listing, reading, pinning, deleting.
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/names.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

constexpr auto kNotFound = absl::StatusCode::kNotFound;

class CheckpointsTest : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    OpenRun("start");
  }
  absl::StatusOr<v1::GetCheckpointResponse> GetRanks(uint64_t step, const std::vector<uint32_t>& ranks) {
    v1::GetCheckpointRequest request;
    request.set_run(kRun);
    request.set_step(step);
    request.mutable_ranks()->Add(ranks.begin(), ranks.end());
    return coordinator_->GetCheckpoint(request);
  }
  absl::StatusOr<v1::GetCheckpointResponse> GetLatest() {
    v1::GetCheckpointRequest request;
    request.set_run(kRun);
    request.set_latest(true);
    return coordinator_->GetCheckpoint(request);
  }
  // Puts another record in place of the checkpoint's, as damage or a bug would.
  void Replace(const v1::CheckpointRecord& record) {
    ASSERT_OK(catalog_->CompareAndSet(
        {}, {{CheckpointKey(kRun, record.step()), EncodeEnvelope(EnvelopeKind::kCheckpoint, record)}}));
  }
};

TEST_F(CheckpointsTest, AreListedByStepOnceCommitted) {
  EXPECT_EQ(Steps(), "");
  for (const uint64_t step : {10, 9, 100}) Save(1, step);
  Begin(1, 50, 0, 2);
  EXPECT_EQ(Steps(), "9 10 100");
  v1::ListCheckpointsRequest request;
  request.set_run("unknown");
  EXPECT_STATUS(coordinator_->ListCheckpoints(request), kNotFound, "there is no run unknown");
  request.set_run("NO");
  EXPECT_STATUS(coordinator_->ListCheckpoints(request), absl::StatusCode::kInvalidArgument, "run name");
}

TEST_F(CheckpointsTest, AllListsAlsoDeletedOnesAndSavesUnderWayOrAborted) {
  Save(1, 1);
  Save(1, 2);
  ASSERT_OK(Delete(1));
  Report(Seal(Begin(1, 3, 1, 3)));
  ASSERT_OK(Abort(Begin(1, 4, 0, 2), "enough"));
  const v1::ListCheckpointsResponse all = ListAll();
  ASSERT_EQ(all.checkpoints_size(), 2);
  EXPECT_EQ(all.checkpoints(0).state(), v1::CheckpointRecord::DELETING);
  EXPECT_EQ(all.checkpoints(1).state(), v1::CheckpointRecord::COMMITTED);
  ASSERT_EQ(all.saves_size(), 2);
  EXPECT_EQ(all.saves(0).record().state(), v1::SaveRecord::SAVING);
  EXPECT_EQ(all.saves(0).reported(), 1u);
  ASSERT_EQ(all.saves(0).missing_ranks_size(), 2);
  EXPECT_EQ(all.saves(0).missing_ranks(1), 2u);
  EXPECT_EQ(all.saves(1).record().state(), v1::SaveRecord::ABORTED);
  EXPECT_EQ(all.saves(1).record().reason(), "rank 0: enough");
  EXPECT_EQ(all.saves(1).record().ended_unix_ms(), clock_.UnixMillis());
  EXPECT_EQ(Steps(), "2");
}

TEST_F(CheckpointsTest, LatestIsTheHighestCommittedStep) {
  EXPECT_STATUS(GetLatest(), kNotFound, "run llama has no committed checkpoint; saves under way: 0");
  Save(1, 10);
  Save(1, 9);
  Begin(1, 11, 0, 2);
  EXPECT_EQ(GetLatest()->record().step(), 10u);
  ASSERT_OK(Delete(10));
  EXPECT_EQ(GetLatest()->record().step(), 9u);
}

TEST_F(CheckpointsTest, WithRanksOnlyTheirEntriesAreGiven) {
  Save(1, 1, 4);
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse some, GetRanks(1, {3, 1, 3, 4, 1'000'000}));
  EXPECT_TRUE(some.manifest_envelope().empty());
  EXPECT_EQ(some.record().world_size(), 4u);
  ASSERT_EQ(some.servers_size(), 1);
  ASSERT_EQ(some.parts_size(), 2);
  EXPECT_EQ(some.parts(0).rank(), 3u);
  EXPECT_EQ(some.parts(1).rank(), 1u);
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse whole, GetRanks(1, {}));
  EXPECT_FALSE(whole.manifest_envelope().empty());
  EXPECT_EQ(whole.parts_size(), 0);
}

TEST_F(CheckpointsTest, AnUnknownStepSaysWhichThereAre) {
  EXPECT_STATUS(Get(5), kNotFound, "run llama has no committed checkpoint of step 5, nor of another step");
  for (uint64_t step = 1; step <= 6; ++step) Save(1, step * 10, 1);
  EXPECT_STATUS(Get(5), kNotFound, "it has 6, of the steps 10, 20, 30, 40, 50, 60");
  for (uint64_t step = 7; step <= 9; ++step) Save(1, step * 10, 1);
  EXPECT_STATUS(Get(5), kNotFound, "it has 9, of the steps 10, 20, 30, ..., 70, 80, 90");
  ASSERT_OK(Delete(20));
  EXPECT_STATUS(Get(20), kNotFound, "of step 20 any more: it was deleted; it has 8");
  EXPECT_STATUS(Get(uint64_t{1} << 63), absl::StatusCode::kInvalidArgument, "step");
}

TEST_F(CheckpointsTest, AManifestThatIsNotTheRecordsIsDataLoss) {
  Save(1, 1);
  const v1::CheckpointRecord good = Get(1)->record();
  const auto refused = [&](const std::function<void(v1::CheckpointRecord*)>& spoil, const std::string& text) {
    v1::CheckpointRecord record = good;
    spoil(&record);
    Replace(record);
    // The manifest that was read before is kept in memory.
    RestartCoordinator();
    EXPECT_STATUS(Get(1), absl::StatusCode::kDataLoss, text);
  };
  refused([](auto* r) { r->set_manifest_digest(std::string(16, 'x')); }, "the catalog says 78787878");
  refused([](auto* r) { r->set_attempt(2); }, "attempt 2");
  refused([](auto* r) { r->set_world_size(3); }, "world size 3");
  refused([](auto* r) { r->set_save_id(r->save_id() + 1); }, "the store has no manifest of it");
  Replace(good);
  EXPECT_OK(Get(1));
}

TEST_F(CheckpointsTest, PinsAreSetAndUnset) {
  Save(1, 1);
  Save(1, 2);
  v1::PinCheckpointRequest request;
  request.set_run(kRun);
  request.set_latest(true);
  request.set_pinned(true);
  request.set_note("für später");
  ASSERT_OK_AND_ASSIGN(const v1::PinCheckpointResponse response, coordinator_->PinCheckpoint(request));
  EXPECT_EQ(response.record().step(), 2u);
  RestartServer();
  EXPECT_TRUE(Get(2)->record().pinned());
  EXPECT_EQ(Get(2)->record().pin_note(), "für später");
  EXPECT_FALSE(Get(1)->record().pinned());
  ASSERT_OK(Pin(2, false, "ignored"));
  EXPECT_FALSE(Get(2)->record().pinned());
  EXPECT_EQ(Get(2)->record().pin_note(), "");
  EXPECT_STATUS(Pin(3), kNotFound, "no committed checkpoint of step 3; it has 2");
  ASSERT_OK(Delete(1));
  EXPECT_STATUS(Pin(1), kNotFound, "any more: it was deleted");
}

TEST_F(CheckpointsTest, BadNotesAreRefused) {
  Save(1, 1);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_STATUS(Pin(1, true, "\xff"), kInvalid, "the pin's note");
  EXPECT_STATUS(Pin(1, true, std::string(1, '\0')), kInvalid, "the pin's note");
  EXPECT_STATUS(Pin(1, true, std::string(1001, 'n')), kInvalid, "expected at most 1000");
  EXPECT_OK(Pin(1, true, std::string(1000, 'n')));
}

TEST_F(CheckpointsTest, ADeletedOneIsGoneForReaders) {
  Save(1, 1);
  Save(1, 2);
  const SaveRef save = Committed(1);
  ASSERT_OK(Delete(1));
  EXPECT_EQ(Steps(), "2");
  EXPECT_STATUS(Get(1), kNotFound, "it was deleted");
  EXPECT_STATUS(coordinator_->CheckCommitted(save), kNotFound, "llama@1 was deleted");
  EXPECT_OK(Delete(1));
  RestartServer();
  EXPECT_EQ(Steps(), "2");
  EXPECT_STATUS(Delete(3), kNotFound, "no committed checkpoint of step 3");
}

TEST_F(CheckpointsTest, TheNewestCanBeDeletedOnRequest) {
  Save(1, 1);
  ASSERT_OK(Delete(1));
  EXPECT_EQ(Steps(), "");
}

TEST_F(CheckpointsTest, APinnedOneIsDeletedOnlyOnPurpose) {
  Save(1, 1);
  ASSERT_OK(Pin(1, true, "paper"));
  EXPECT_STATUS(Delete(1), absl::StatusCode::kFailedPrecondition, "llama@1 is pinned (\"paper\")");
  EXPECT_EQ(Steps(), "1");
  ASSERT_OK(Delete(1, /*even_if_pinned=*/true));
  EXPECT_EQ(Steps(), "");
}

TEST_F(CheckpointsTest, APinThatComesJustBeforeTheDeletionWins) {
  Save(1, 1);
  catalog_->BeforeChangeOf("ckpt/", [&] { ASSERT_OK(Pin(1)); });
  EXPECT_STATUS(Delete(1), absl::StatusCode::kFailedPrecondition, "is pinned");
}

TEST_F(CheckpointsTest, CheckCommittedKnowsTheSaveAndNotOnlyTheStep) {
  const std::vector<v1::SaveContext> first = Save(1, 1);
  EXPECT_OK(coordinator_->CheckCommitted(RefOfContext(first[0])));
  EXPECT_STATUS(coordinator_->CheckCommitted({kRun, 2, 5}), kNotFound, "no committed checkpoint of step 2");
  EXPECT_STATUS(coordinator_->CheckCommitted({"NO", 2, 5}), absl::StatusCode::kInvalidArgument, "run name");
  const v1::SaveContext under_way = Begin(1, 3, 0, 2);
  EXPECT_STATUS(coordinator_->CheckCommitted(RefOfContext(under_way)), kNotFound, "of step 3");
  OpenRun("second");
  Save(2, 1);
  EXPECT_STATUS(coordinator_->CheckCommitted(RefOfContext(first[0])), kNotFound, "was replaced by attempt 2");
  EXPECT_OK(coordinator_->CheckCommitted(Committed(1)));
}

TEST_F(CheckpointsTest, AReadThatRacesWithReplacementGivesTheNewOne) {
  Save(1, 1);
  OpenRun("second");
  Save(2, 1);
  Collect();
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse response, Get(1));
  EXPECT_EQ(response.record().attempt(), 2u);
}

}  // namespace
}  // namespace esker::testing
