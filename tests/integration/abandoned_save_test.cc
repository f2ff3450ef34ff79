// Jobs that die in the middle of a save.
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class AbandonedSave : public ServerTest {
 protected:
  void SetUp() override {
    ServerProcess::Options options;
    options.save_timeout = "2s";
    StartServer(options);
  }

  // Until no save of the run is under way any more. The server expires it by its own clock: nothing to wait
  // for but the answer.
  absl::Status AwaitNoSaveUnderWay(const std::string& run) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (true) {
      ESKER_ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse listed, client_->List(run, true));
      bool saving = false;
      for (const v1::SaveStatusEntry& save : listed.saves())
        saving |= save.record().state() == v1::SaveRecord::SAVING;
      if (!saving) return absl::OkStatus();
      if (std::chrono::steady_clock::now() > deadline)
        return absl::DeadlineExceededError(listed.DebugString());
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  void ExpectNothingLeft() {
    ASSERT_OK(client_->CollectGarbage());
    ASSERT_OK_AND_ASSIGN(const v1::StatusResponse status, client_->ServerStatus());
    EXPECT_EQ(status.parts(), 0u);
    EXPECT_EQ(status.chunks(), 0u);
    EXPECT_EQ(status.live_bytes(), 0u);
    EXPECT_EQ(status.reserved_bytes(), 0u);
    EXPECT_EQ(status.open_saves(), 0u);
  }
};

// Kills all four ranks of a real training job right after the save began. The server may have all of it in
// its hands by then; if not, the save is given up.
TEST_F(AbandonedSave, OfAKilledJobIsWholeOrNotListedAndItsSpaceIsCollected) {
  ASSERT_OK_AND_ASSIGN(
      auto job, ChildProcess::Start({{ProgramPath("esker-train-text"), "--server", server_->address(),
                                      "--run", "run", "--ranks", "4", "--hidden", "2048", "--save-every", "1",
                                      "--steps", "1000", "--text", SampleText()},
                                     dir_ / "job.log",
                                     {},
                                     {}}));
  ASSERT_OK(job->WaitForLog("step 1: loss", std::chrono::seconds(60)));
  job->Kill();  // its ranks die with it

  // The job's next start waits until the server is done with what the ranks have left in its hands.
  ASSERT_OK(Checkpointer::Open(Options("run", "next")).status());
  ASSERT_OK(AwaitNoSaveUnderWay("run"));
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  for (const v1::CheckpointRecord& checkpoint : listed.checkpoints()) {
    EXPECT_EQ(checkpoint.world_size(), 4u);
    ASSERT_OK(client_->Delete("run", checkpoint.step()));
  }
  ExpectNothingLeft();
}

TEST_F(AbandonedSave, ThatLacksOnlyOneRankIsNotListedEither) {
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  std::vector<std::unique_ptr<RawRank>> ranks;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    ranks.push_back(std::make_unique<RawRank>(client_.get(), "run", attempt, rank, 4));
    if (rank < 3) ASSERT_OK(ranks[rank]->Save(1, std::string(1 << 20, static_cast<char>('a' + rank))));
  }
  ASSERT_OK(ranks[3]->Begin(1, std::string(1 << 20, 'z')));
  ASSERT_OK(ranks[3]->Upload());
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0);
  // Those who wait are told who is missing.
  ASSERT_OK_AND_ASSIGN(v1::SaveStatus status, ranks[0]->Await(0));
  EXPECT_EQ(status.reported(), 3u);
  EXPECT_THAT(status.missing_ranks(), ::testing::ElementsAre(3));
  ASSERT_OK_AND_ASSIGN(status, ranks[0]->Await(30'000));
  EXPECT_EQ(status.state(), v1::SaveStatus::ABORTED);
  EXPECT_THAT(status.reason(), ::testing::HasSubstr("3"));
  ExpectNothingLeft();
}

// A save does not expire while its ranks send, however long it takes.
TEST_F(AbandonedSave, IsNotOneWhoseRanksAreSlowButAlive) {
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  RawRank slow(client_.get(), "run", attempt, 0, 1);
  ASSERT_OK(slow.Begin(1, std::string(1 << 20, 's')));
  const auto begun = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begun < std::chrono::seconds(5)) {
    ASSERT_OK(slow.Upload());  // an offer is progress
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  ASSERT_OK(slow.Seal());
  ASSERT_OK_AND_ASSIGN(const v1::SaveStatus status, slow.Report());
  EXPECT_EQ(status.state(), v1::SaveStatus::COMMITTED);
}

// After the server's own restart too: nothing of the save is in its memory then.
TEST_F(AbandonedSave, FromBeforeARestartOfTheServerExpiresToo) {
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  RawRank rank(client_.get(), "run", attempt, 0, 2);
  ASSERT_OK(rank.Save(1, std::string(3 << 20, 'a')));
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  ASSERT_OK(AwaitNoSaveUnderWay("run"));
  ExpectNothingLeft();
}

// Two ranks of a job, through libesker.
class GivenUpSave : public ServerTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(StartServer());
    for (uint32_t rank = 0; rank < 2; ++rank) {
      CheckpointerOptions options = Options();
      options.rank = rank;
      options.world_size = 2;
      ASSERT_OK_AND_ASSIGN(ranks_[rank], Checkpointer::Open(options));
    }
  }

  absl::StatusOr<SaveHandle> Save(uint32_t rank, uint64_t step) {
    const std::string position = absl::StrCat("rank ", rank, " at ", step);
    State state;
    state.items.push_back({"loader", position});
    return ranks_[rank]->Save(step, state);
  }

  std::unique_ptr<Checkpointer> ranks_[2];
};

// The server's own time limit is ten minutes.
TEST_F(GivenUpSave, FailsOnAllRanksAtOnceAndTheNextOneWorks) {
  ASSERT_OK_AND_ASSIGN(const SaveHandle waiting, Save(0, 1));
  ASSERT_OK(ranks_[1]->Abort(1, "out of paper"));
  EXPECT_STATUS(waiting.WaitFor(60'000), absl::StatusCode::kAborted, "rank 1: out of paper");
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0);

  ASSERT_OK_AND_ASSIGN(const SaveHandle first, Save(0, 2));
  ASSERT_OK_AND_ASSIGN(const SaveHandle second, Save(1, 2));
  EXPECT_OK(first.Wait());
  EXPECT_OK(second.Wait());
}

TEST_F(GivenUpSave, ThatWasCommittedStays) {
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, Save(0, 1));
  ASSERT_OK_AND_ASSIGN(const SaveHandle second, Save(1, 1));
  ASSERT_OK(first.Wait());
  ASSERT_OK(second.Wait());
  EXPECT_STATUS(ranks_[1]->Abort(1, "too late"), absl::StatusCode::kAlreadyExists, "run@1");
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 1);
}

TEST_F(GivenUpSave, WithoutAServerIsAnErrorAndNoHang) {
  server_->Kill();
  EXPECT_STATUS(ranks_[1]->Abort(1, "out of paper"), absl::StatusCode::kUnavailable, "");
}

}  // namespace
}  // namespace esker::testing
