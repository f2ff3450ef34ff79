// A save from BeginSave to the commit or the abort, with one coordinator.
#include <future>
#include <thread>

#include "format/base/text.h"
#include "format/envelope.h"
#include "format/hash.h"
#include "format/names.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class Saving : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    OpenRun("start");
  }
  v1::ListCheckpointsResponse All() { return ListAll(); }
};

TEST_F(Saving, TheLastReportCommits) {
  const v1::SaveContext a = Begin(1, 7, 0, 2);
  const v1::SaveContext b = Begin(1, 7, 1, 2);
  EXPECT_EQ(a.save_id(), b.save_id());
  EXPECT_NE(a.save_id(), 0u);
  const v1::SaveStatus first = Report(Seal(b));
  EXPECT_EQ(first.state(), v1::SaveStatus::SAVING);
  EXPECT_EQ(first.reported(), 1u);
  EXPECT_EQ(first.missing_ranks(0), 0u);
  EXPECT_EQ(Steps(), "");
  EXPECT_STATUS(Get(7), absl::StatusCode::kNotFound, "saves under way: 1");
  const v1::SaveStatus last = Report(Seal(a));
  EXPECT_EQ(last.state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(last.reported(), 2u);
  EXPECT_EQ(Steps(), "7");
  EXPECT_EQ(All().saves_size(), 0);
}

TEST_F(Saving, TheManifestHoldsEveryPartAndTheRecordTheSums) {
  clock_.Advance(5);
  const v1::SaveContext a = Begin(1, 7, 0, 3);
  clock_.Advance(10);
  std::vector<v1::ReportPartRequest> reports = {Seal(Begin(1, 7, 2, 3), std::string(100, 'x')),
                                                Seal(a, std::string(300, 'y')),
                                                Seal(Begin(1, 7, 1, 3), std::string(100, 'x'))};
  for (const v1::ReportPartRequest& report : reports) Report(report);
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse response, Get(7));
  const v1::CheckpointRecord& record = response.record();
  EXPECT_EQ(record.attempt(), 1u);
  EXPECT_EQ(record.save_id(), a.save_id());
  EXPECT_EQ(record.world_size(), 3u);
  EXPECT_EQ(record.committed_unix_ms(), clock_.UnixMillis());
  EXPECT_EQ(record.begun_unix_ms(), clock_.UnixMillis() - 10);
  EXPECT_EQ(record.raw_bytes(), 500u);
  EXPECT_EQ(record.stored_bytes(), 500u);
  EXPECT_EQ(record.new_stored_bytes(), 400u) << "two ranks share a chunk";
  EXPECT_EQ(HashOf(AsBytes(response.manifest_envelope())).AsText(), record.manifest_digest());
  ASSERT_OK_AND_ASSIGN(const v1::Manifest manifest,
                       DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, response.manifest_envelope()));
  EXPECT_EQ(manifest.run(), kRun);
  EXPECT_EQ(manifest.step(), 7u);
  EXPECT_EQ(manifest.committed_unix_ms(), record.committed_unix_ms());
  ASSERT_EQ(manifest.servers_size(), 1);
  EXPECT_EQ(manifest.servers(0).id(), store_->id());
  EXPECT_EQ(manifest.servers(0).address(), "server:7070");
  ASSERT_EQ(manifest.parts_size(), 3);
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(manifest.parts(rank).rank(), static_cast<uint32_t>(rank));
  EXPECT_EQ(manifest.parts(0).raw_bytes(), 300u);
  EXPECT_EQ(manifest.parts(2).part_digest(), reports[0].part().part_digest());
}

TEST_F(Saving, SavesOfDifferentStepsGoOnAtTheSameTime) {
  const v1::SaveContext one = Begin(1, 1, 0, 1);
  const v1::SaveContext two = Begin(1, 2, 0, 1);
  EXPECT_NE(one.save_id(), two.save_id());
  Report(Seal(two));
  EXPECT_EQ(Steps(), "2");
  Report(Seal(one));
  EXPECT_EQ(Steps(), "1 2");
}

TEST_F(Saving, ARankThatBeginsTwiceJoinsTheSameSave) {
  const v1::SaveContext first = Begin(1, 1, 0, 2);
  EXPECT_EQ(Begin(1, 1, 0, 2).save_id(), first.save_id());
}

TEST_F(Saving, AnotherWorldSizeIsRefusedNamingBoth) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  EXPECT_STATUS(TryBegin(1, 1, 1, 4), absl::StatusCode::kAlreadyExists,
                "rank 1 saves with a world size of 4, but the save was begun with 2");
  EXPECT_OK(coordinator_->CheckSaveOpen(save));
}

TEST_F(Saving, ACommittedStepIsNotSavedAgainByTheSameAttempt) {
  const std::vector<v1::SaveContext> saves = Save(1, 1);
  EXPECT_STATUS(TryBegin(1, 1, 0, 2), absl::StatusCode::kAlreadyExists,
                "llama@1 has been committed by attempt 1");
  EXPECT_EQ(Committed(1).save_id, saves[0].save_id());
}

TEST_F(Saving, ADeletedStepCanBeSavedAgainByTheSameAttempt) {
  const std::vector<v1::SaveContext> first = Save(1, 1);
  ASSERT_OK(Delete(1));
  const std::vector<v1::SaveContext> second = Save(1, 1);
  EXPECT_NE(first[0].save_id(), second[0].save_id());
  EXPECT_EQ(Steps(), "1");
  Collect();
  EXPECT_EQ(Steps(), "1");
  ExpectReadable(Committed(1), 2);
  EXPECT_FALSE(StoreHas(RefOfContext(first[0])));
}

TEST_F(Saving, ANewerAttemptSavesACommittedStepAgainAndTheOldOneStaysUntilThen) {
  const std::vector<v1::SaveContext> first = Save(1, 1);
  OpenRun("second start");
  const v1::SaveContext again = Begin(2, 1, 0, 2);
  EXPECT_NE(again.save_id(), first[0].save_id());
  Report(Seal(again));
  Collect();
  EXPECT_EQ(Committed(1), RefOfContext(first[0]));
  ExpectReadable(RefOfContext(first[0]), 2);
  Report(Seal(Begin(2, 1, 1, 2)));
  EXPECT_EQ(Committed(1), RefOfContext(again));
  EXPECT_EQ(Steps(), "1");
}

TEST_F(Saving, SavingAPinnedStepAgainKeepsThePin) {
  Save(1, 1);
  ASSERT_OK(Pin(1, true, "best so far"));
  OpenRun("second start");
  Save(2, 1);
  EXPECT_TRUE(Get(1)->record().pinned());
  EXPECT_EQ(Get(1)->record().pin_note(), "best so far");
  EXPECT_EQ(Get(1)->record().attempt(), 2u);
}

TEST_F(Saving, WithoutSpaceTheSaveIsAbortedWithTheFigures) {
  const v1::SaveContext other = Begin(1, 1, 0, 2);
  Waiting waiting = Wait(other, 60'000);
  v1::BeginSaveRequest request;
  request.set_run(kRun);
  request.set_attempt(1);
  request.set_step(1);
  request.set_rank(1);
  request.set_world_size(2);
  request.set_raw_bytes(uint64_t{1} << 62);
  EXPECT_STATUS(coordinator_->BeginSave(request), absl::StatusCode::kResourceExhausted, "bytes");
  const absl::StatusOr<v1::SaveStatus> status = waiting.Await();
  ASSERT_OK(status);
  EXPECT_EQ(status->state(), v1::SaveStatus::ABORTED);
  EXPECT_THAT(status->reason(), ::testing::HasSubstr("rank 1 got no space"));
  EXPECT_STATUS(coordinator_->CheckSaveOpen(other), absl::StatusCode::kAborted, "rank 1 got no space");
  EXPECT_TRUE(store_->OpenSaves().empty());
}

TEST_F(Saving, TheSameReportAgainIsAnsweredAlike) {
  const v1::ReportPartRequest first = Seal(Begin(1, 1, 0, 2));
  const v1::ReportPartRequest second = Seal(Begin(1, 1, 1, 2));
  EXPECT_EQ(Report(first).reported(), 1u);
  EXPECT_EQ(Report(first).reported(), 1u);
  EXPECT_EQ(Report(second).state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(Report(first).state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(Report(second).state(), v1::SaveStatus::COMMITTED);
  ASSERT_OK(Delete(1));
  EXPECT_EQ(Report(first).state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Saving, TwoProcessesWithOneRankAreToldBothParts) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  const v1::ReportPartRequest report = Seal(save, "one");
  Report(report);
  v1::ReportPartRequest other = report;
  other.mutable_part()->set_part_digest(std::string(16, 'x'));
  // The store has sealed the one part, so it is already there that the other is found out.
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists, "78787878787878787878787878787878");
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists,
                HashFromBytes(report.part().part_digest(), "part")->ToHex());
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists, "two processes claim");
  EXPECT_EQ(Report(report).reported(), 1u);
}

TEST_F(Saving, TwoProcessesWithOneRankOnOtherServersAreToldBothParts) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  v1::ReportPartRequest report = Seal(save, "one");
  report.mutable_servers(0)->set_id("another-server");
  Report(report);
  v1::ReportPartRequest other = report;
  other.mutable_part()->set_part_digest(std::string(16, 'x'));
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists, "78787878787878787878787878787878");
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists,
                HashFromBytes(report.part().part_digest(), "part")->ToHex());
  Report(Seal(Begin(1, 1, 1, 2)));
  EXPECT_STATUS(TryReport(other), absl::StatusCode::kAlreadyExists, "has been committed with the part");
}

TEST_F(Saving, APartThatIsNotSealedHereIsRefused) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  v1::ReportPartRequest report = Seal(save);
  report.mutable_save()->set_rank(1);
  report.mutable_part()->set_rank(1);
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kFailedPrecondition,
                "rank 1: it reports a part that is not sealed");
  report = Seal(save);
  report.mutable_part()->set_raw_bytes(1);
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kInvalidArgument,
                "report the entry that sealing returned");
  report = Seal(save);
  report.mutable_part()->set_unchanged_bytes(report.part().raw_bytes() + 1);
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kInvalidArgument, "unchanged bytes");
}

TEST_F(Saving, MalformedReportsAreRefused) {
  const v1::ReportPartRequest good = Seal(Begin(1, 1, 0, 2));
  const auto refused = [&](const std::function<void(v1::ReportPartRequest*)>& spoil,
                           const std::string& text) {
    v1::ReportPartRequest request = good;
    spoil(&request);
    EXPECT_STATUS(TryReport(request), absl::StatusCode::kInvalidArgument, text);
  };
  refused([](auto* r) { r->mutable_save()->set_run("../x"); }, "run name");
  refused([](auto* r) { r->mutable_save()->set_step(uint64_t{1} << 63); }, "step 9223372036854775808");
  refused([](auto* r) { r->mutable_save()->set_attempt(0); }, "attempt 0");
  refused([](auto* r) { r->mutable_save()->set_attempt(2); },
          "attempt 2 was never given out, the newest is 1");
  refused([](auto* r) { r->mutable_save()->set_save_id(0); }, "save id 0");
  refused([](auto* r) { r->mutable_save()->set_rank(1); }, "rank 1 reports the part of rank 0");
  refused(
      [](auto* r) {
        r->mutable_save()->set_rank(2);
        r->mutable_part()->set_rank(2);
      },
      "expected 0 to 1");
  refused([](auto* r) { r->mutable_part()->set_part_digest("short"); }, "the part's digest");
  refused([](auto* r) { r->mutable_part()->clear_layout_digest(); }, "the layout's digest");
  refused([](auto* r) { r->mutable_part()->clear_servers(); }, "that no server holds");
  refused([](auto* r) { r->mutable_part()->set_servers(0, 1); }, "server number 1");
  refused([](auto* r) { r->mutable_part()->add_servers(0); }, "expected distinct numbers");
  refused([](auto* r) { r->mutable_servers(0)->clear_id(); }, "the id \"\"");
  refused([](auto* r) { r->mutable_servers(0)->set_id(std::string("a\0b", 3)); }, "the id \"a\\x00b\"");
  refused([](auto* r) { r->mutable_servers(0)->set_address(std::string(257, 'a')); }, "the address");
  refused([](auto* r) { *r->add_servers() = r->servers(0); }, "twice");
  refused(
      [](auto* r) {
        for (int i = 0; i < 64; ++i) r->add_servers()->set_id(StrCat("server", i));
      },
      "names 65 servers");
  EXPECT_EQ(Report(good).reported(), 1u);
}

TEST_F(Saving, MalformedBeginsAreRefused) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_STATUS(TryBegin(1, uint64_t{1} << 63, 0, 1), kInvalid, "step");
  EXPECT_STATUS(TryBegin(0, 1, 0, 1), kInvalid, "attempt 0");
  EXPECT_STATUS(TryBegin(2, 1, 0, 1), kInvalid, "attempt 2 was never given out");
  EXPECT_STATUS(TryBegin(1, 1, 0, 0), kInvalid, "world size 0");
  EXPECT_STATUS(TryBegin(1, 1, 2, 2), kInvalid, "rank 2");
  EXPECT_STATUS(TryBegin(1, 1, 0, kMaxWorldSize + 1), kInvalid, "world size");
  EXPECT_STATUS(TryBegin(1, 1, 0, 1, "No Name"), kInvalid, "run name");
  EXPECT_STATUS(TryBegin(1, 1, 0, 1, "unknown"), absl::StatusCode::kNotFound, "there is no run unknown");
  EXPECT_EQ(All().saves_size(), 0);
}

TEST_F(Saving, TheLargestStepAndWorldAreTaken) {
  Save(1, kMaxStep, 1);
  EXPECT_EQ(Steps(), std::to_string(kMaxStep));
  const v1::SaveContext save = Begin(1, 1, kMaxWorldSize - 1, kMaxWorldSize);
  EXPECT_EQ(Report(Seal(save)).reported(), 1u);
  EXPECT_EQ(Poll(save)->missing_ranks_size(), 16);
}

TEST_F(Saving, TooManySavesOfARunAtATimeAreRefused) {
  for (uint64_t step = 0; step < 64; ++step) Begin(1, step, 0, 2);
  EXPECT_STATUS(TryBegin(1, 64, 0, 2), absl::StatusCode::kResourceExhausted, "64 saves are under way");
  EXPECT_OK(TryBegin(1, 63, 1, 2));  // joining is no new save
  Save(OpenRun("start", "other"), 1, 1, "other");
  ASSERT_OK(Abort(Begin(1, 5, 0, 2), "enough"));
  EXPECT_OK(TryBegin(1, 64, 0, 2));
}

TEST_F(Saving, AnAbortEndsTheSaveForAllWithItsReason) {
  const v1::SaveContext a = Begin(1, 1, 0, 2);
  const v1::SaveContext b = Begin(1, 1, 1, 2);
  const v1::ReportPartRequest report = Seal(b);
  Report(report);
  Waiting waiting = Wait(b, 60'000);
  ASSERT_OK(Abort(a, "out of \x1b[31mmemory\xff"));
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(waiting.Await()->reason(), "rank 0: out of \\x1b[31mmemory\\xff")
      << "fit for terminals and records";
  EXPECT_TRUE(waiting.Await()->this_rank_reported());
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kAborted, "memory");
  EXPECT_STATUS(coordinator_->CheckSaveOpen(a), absl::StatusCode::kAborted, "rank 0: out of");
  EXPECT_EQ(Poll(a)->state(), v1::SaveStatus::ABORTED);
  EXPECT_OK(Abort(b, "me too"));
  EXPECT_EQ(Poll(a)->reason(), "rank 0: out of \\x1b[31mmemory\\xff");
  EXPECT_TRUE(store_->OpenSaves().empty());
}

TEST_F(Saving, AnAbortedSaveIsReplacedByTheNextOfItsStep) {
  const v1::SaveContext old = Begin(1, 1, 0, 1);
  const v1::ReportPartRequest report = Seal(old);
  ASSERT_OK(Abort(old, "enough"));
  const v1::SaveContext fresh = Begin(1, 1, 0, 1);
  EXPECT_NE(fresh.save_id(), old.save_id());
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kNotFound, "replaced by a later save");
  EXPECT_STATUS(Poll(old), absl::StatusCode::kNotFound, "replaced by a later save");
  EXPECT_STATUS(coordinator_->CheckSaveOpen(old), absl::StatusCode::kNotFound, "replaced");
  Report(Seal(fresh));
  EXPECT_EQ(Committed(1), RefOfContext(fresh));
}

TEST_F(Saving, ARankThatComesLateToAnAbortedSaveIsToldOnce) {
  const v1::SaveContext old = Begin(1, 1, 0, 3);
  ASSERT_OK(Abort(old, "it says \"no\""));
  EXPECT_STATUS(TryBegin(1, 1, 1, 3), absl::StatusCode::kAborted,
                "the save of llama@1 was aborted: rank 0: it says \"no\"");
  EXPECT_STATUS(coordinator_->CheckSaveOpen(old), absl::StatusCode::kAborted, "it says");
  // It knows now: if it begins again, that is on purpose.
  const v1::SaveContext fresh = Begin(1, 1, 1, 3);
  EXPECT_NE(fresh.save_id(), old.save_id());
  EXPECT_EQ(Begin(1, 1, 2, 3).save_id(), fresh.save_id());
  EXPECT_EQ(Begin(1, 1, 0, 3).save_id(), fresh.save_id());
}

TEST_F(Saving, ARankThatComesLateToASaveWithoutSpaceIsToldTheFigures) {
  v1::BeginSaveRequest request;
  request.set_run(kRun);
  request.set_attempt(1);
  request.set_step(1);
  request.set_rank(1);
  request.set_world_size(3);
  request.set_raw_bytes(uint64_t{1} << 62);
  const absl::Status refused = coordinator_->BeginSave(request).status();
  ASSERT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_STATUS(TryBegin(1, 1, 2, 3), absl::StatusCode::kResourceExhausted, std::string(refused.message()));
  EXPECT_EQ(All().saves(0).record().state(), v1::SaveRecord::ABORTED)
      << "no rank waits for the others in a new one";
}

TEST_F(Saving, ANewerAttemptBeginsAnAbortedSaveAnewAtOnce) {
  ASSERT_OK(Abort(Begin(1, 1, 0, 2), "enough"));
  OpenRun("second start");
  Begin(2, 1, 1, 2);
}

TEST_F(Saving, ACommittedSaveCanNotBeAborted) {
  const v1::SaveContext save = Save(1, 1)[0];
  EXPECT_STATUS(Abort(save, "too late"), absl::StatusCode::kAlreadyExists, "has been committed");
  EXPECT_STATUS(coordinator_->CheckSaveOpen(save), absl::StatusCode::kAlreadyExists, "has been committed");
  EXPECT_EQ(Steps(), "1");
}

TEST_F(Saving, UnknownSavesAreNotFound) {
  v1::SaveContext save = Begin(1, 1, 0, 1);
  save.set_save_id(save.save_id() + 1);
  EXPECT_STATUS(coordinator_->CheckSaveOpen(save), absl::StatusCode::kNotFound, "Call BeginSave");
  EXPECT_STATUS(Poll(save), absl::StatusCode::kNotFound, "there is no save with the id");
  EXPECT_STATUS(Abort(save, "x"), absl::StatusCode::kNotFound, "there is no save");
  save.set_step(2);
  EXPECT_STATUS(Poll(save), absl::StatusCode::kNotFound, "there is no save");
}

TEST_F(Saving, AContextMustBeTheSavesOwn) {
  v1::SaveContext save = Begin(1, 1, 0, 2);
  save.set_rank(2);
  EXPECT_STATUS(coordinator_->CheckSaveOpen(save), absl::StatusCode::kInvalidArgument, "rank 2");
  EXPECT_STATUS(Poll(save), absl::StatusCode::kInvalidArgument, "rank 2");
  save.set_rank(0);
  save.set_attempt(3);
  EXPECT_STATUS(Poll(save), absl::StatusCode::kInvalidArgument, "belongs to attempt 1, not to attempt 3");
  EXPECT_STATUS(coordinator_->CheckSaveOpen(save), absl::StatusCode::kInvalidArgument,
                "attempt 3 was never given out");
}

TEST_F(Saving, WaitAnswersWhenTheSaveCommits) {
  const v1::SaveContext a = Begin(1, 1, 0, 2);
  const v1::SaveContext b = Begin(1, 1, 1, 2);
  Report(Seal(a));
  Waiting waiting = Wait(a, 60'000);
  EXPECT_FALSE(waiting.answered());
  Report(Seal(b));
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::COMMITTED);
  EXPECT_TRUE(waiting.Await()->this_rank_reported());
  EXPECT_EQ(Poll(b)->state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Saving, WaitAnswersHowFarItIsWhenItsTimeIsOver) {
  const v1::SaveContext a = Begin(1, 1, 0, 3);
  Report(Seal(Begin(1, 1, 1, 3)));
  Waiting waiting = Wait(a, 1000);
  Pass(999);
  EXPECT_FALSE(waiting.answered());
  Pass(1);
  ASSERT_TRUE(waiting.answered());
  const v1::SaveStatus status = *waiting.Await();
  EXPECT_EQ(status.state(), v1::SaveStatus::SAVING);
  EXPECT_EQ(status.reported(), 1u);
  EXPECT_EQ(status.world_size(), 3u);
  EXPECT_FALSE(status.this_rank_reported());
  ASSERT_EQ(status.missing_ranks_size(), 2);
  EXPECT_EQ(status.missing_ranks(1), 2u);
}

TEST_F(Saving, NoWaitLastsLongerThanAMinute) {
  Waiting waiting = Wait(Begin(1, 1, 0, 2), 3'600'000);
  Pass(59'999);
  EXPECT_FALSE(waiting.answered());
  Pass(1);
  EXPECT_TRUE(waiting.answered());
}

TEST_F(Saving, StoppingAnswersThoseWhoWait) {
  Waiting waiting = Wait(Begin(1, 1, 0, 2), 60'000);
  coordinator_.reset();
  ASSERT_TRUE(waiting.answered());
  EXPECT_STATUS(waiting.Await(), absl::StatusCode::kUnavailable, "the server is stopping");
}

TEST_F(Saving, TheBackgroundThreadAnswersWaitsByItself) {
  options_.clock = SystemClock();
  RestartCoordinator();
  EXPECT_EQ(Wait(Begin(1, 1, 0, 2), 20).Await()->state(), v1::SaveStatus::SAVING);
}

TEST_F(Saving, ASaveWithoutProgressIsAbortedNamingTheMissingRanks) {
  const v1::SaveContext save = Begin(1, 1, 3, 5);
  Report(Seal(save));
  Waiting waiting = Wait(save, 60'000);
  Pass(59'000);
  Pass(240'999);
  EXPECT_EQ(Poll(save)->state(), v1::SaveStatus::SAVING);
  waiting = Wait(save, 60'000);
  Pass(1);
  ASSERT_TRUE(waiting.answered());
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(waiting.Await()->reason(),
            "no rank sent anything for 5m: 1 of 5 ranks have reported; missing: 0, 1, 2, 4");
  EXPECT_TRUE(store_->OpenSaves().empty());
}

TEST_F(Saving, OfManyMissingRanksTheFirst16AreNamed) {
  const v1::SaveContext save = Begin(1, 1, 0, 1000);
  Report(Seal(save));
  Pass(300'000);
  EXPECT_EQ(Poll(save)->reason(),
            "no rank sent anything for 5m: 1 of 1000 ranks have reported; missing: "
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 and 983 more");
}

TEST_F(Saving, ReportsAndBytesAreProgress) {
  const v1::SaveContext a = Begin(1, 1, 0, 3);
  Pass(299'999);
  Report(Seal(a));
  Pass(299'999);
  const v1::SaveContext b = Begin(1, 1, 1, 3);
  Pass(299'999);
  ASSERT_OK(store_->Offer({RefOfContext(b), 1, 1}, {HashOf(AsBytes("x"))}));
  Pass(299'999);
  // What is sealed the store forgets; that it was active until now must still count.
  const v1::ReportPartRequest report = Seal(b);
  Pass(299'999);
  EXPECT_EQ(Poll(a)->state(), v1::SaveStatus::SAVING);
  Report(report);
  Pass(299'999);
  EXPECT_EQ(Poll(a)->state(), v1::SaveStatus::SAVING);
  Pass(1);
  EXPECT_EQ(Poll(a)->state(), v1::SaveStatus::ABORTED);
}

TEST_F(Saving, WhatTheStoreHoldsForAnEndedSaveIsLetGo) {
  const v1::SaveContext save = Begin(1, 1, 0, 2);
  ASSERT_OK(Abort(save, "enough"));
  // A rank that had not heard of it yet.
  ASSERT_OK(store_->Offer({RefOfContext(save), 1, 0}, {HashOf(AsBytes("x"))}));
  EXPECT_EQ(store_->OpenSaves().size(), 1u);
  Begin(1, 2, 0, 2);
  coordinator_->Tick();
  ASSERT_EQ(store_->OpenSaves().size(), 1u);
  EXPECT_EQ(store_->OpenSaves()[0].first.step, 2u) << "the other save goes on";
}

TEST_F(Saving, AChangeOfTheRetentionPolicyDoesNotDisturbACommit) {
  const v1::SaveContext save = Begin(1, 1, 0, 1);
  const v1::ReportPartRequest report = Seal(save);
  catalog_->BeforeChangeOf("ckpt/", [&] {
    v1::SetRetentionRequest request;
    request.set_run(kRun);
    request.mutable_policy()->set_keep_last(2);
    ASSERT_OK(coordinator_->SetRetention(request));
  });
  EXPECT_EQ(Report(report).state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(Steps(), "1");
}

TEST_F(Saving, AnAbortThatComesBeforeTheCommitWins) {
  const v1::SaveContext save = Begin(1, 1, 0, 1);
  const v1::ReportPartRequest report = Seal(save);
  catalog_->BeforeChangeOf("ckpt/", [&] { ASSERT_OK(Abort(save, "just in time")); });
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kAborted, "just in time");
  EXPECT_EQ(Steps(), "");
}

TEST_F(Saving, ReportsDuringTheCommitWaitForItsOutcome) {
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  std::future<absl::StatusOr<v1::SaveStatus>> second;
  catalog_->BeforeChangeOf(
      "ckpt/", [&] { second = std::async(std::launch::async, [&] { return TryReport(report); }); });
  EXPECT_EQ(Report(report).state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(second.get()->state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Saving, ACommitThatTheCatalogFailedIsTriedAgainByTheNextReport) {
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_STATUS(TryReport(report), absl::StatusCode::kUnavailable, "injected");
  EXPECT_EQ(Steps(), "");
  catalog_->Heal();
  EXPECT_EQ(Report(report).state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Saving, ACommitThatTheCatalogFailedIsTriedAgainByItself) {
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryReport(report).ok());
  Waiting waiting = Wait(report.save(), 60'000);
  catalog_->Heal();
  coordinator_->Tick();
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::COMMITTED);
}

TEST_F(Saving, ACommitThatWasAppliedButReportedAsFailedIsFoundOut) {
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->FailFrom(0, FaultyCatalog::Fault::kApplyThenFail);
  EXPECT_FALSE(TryReport(report).ok());
  EXPECT_EQ(Steps(), "1");
  Waiting waiting = Wait(report.save(), 60'000);
  EXPECT_EQ(waiting.Await()->state(), v1::SaveStatus::COMMITTED);
  EXPECT_EQ(Report(report).state(), v1::SaveStatus::COMMITTED);
  catalog_->Heal();
  coordinator_->Tick();
  EXPECT_TRUE(store_->OpenSaves().empty());
}

TEST_F(Saving, ACommitThatTheCatalogFailedForLongIsMadeOnceItCan) {
  const v1::ReportPartRequest report = Seal(Begin(1, 1, 0, 1));
  catalog_->FailFrom(0, FaultyCatalog::Fault::kRefuse);
  EXPECT_FALSE(TryReport(report).ok());
  Pass(300'000);
  EXPECT_EQ(Poll(report.save())->state(), v1::SaveStatus::SAVING) << "the abort fails, too";
  catalog_->Heal();
  coordinator_->Tick();
  EXPECT_EQ(Poll(report.save())->state(), v1::SaveStatus::COMMITTED) << "better late than never";
}

TEST_F(Saving, ABeginThatWasAppliedButReportedAsFailedExpires) {
  catalog_->FailFrom(0, FaultyCatalog::Fault::kApplyThenFail);
  EXPECT_FALSE(TryBegin(1, 1, 0, 2).ok());
  catalog_->Heal();
  coordinator_->Tick();
  EXPECT_EQ(All().saves(0).record().state(), v1::SaveRecord::SAVING);
  EXPECT_EQ(All().saves(0).missing_ranks_size(), 2);
  Pass(300'000);
  EXPECT_EQ(All().saves(0).record().state(), v1::SaveRecord::ABORTED);
}

}  // namespace
}  // namespace esker::testing
