// Ranks that should not write any more, or claim to be another (P4).
#include <thread>

#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class Fencing : public ServerTest {
 protected:
  void SetUp() override { StartServer(); }
  static std::vector<GlobalTensor> Tensors() { return {{"weights", ElementType::kF32, {8, 100'000}}}; }
};

TEST_F(Fencing, AZombieOfAnOlderAttemptSavesNothing) {
  ASSERT_OK_AND_ASSIGN(auto zombies, Job::Open(Options("run", "first"), 2));
  ASSERT_OK(zombies->Save(10, MakeJobState(Tensors(), 2, 1)));
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options("run", "second"), 2));

  const absl::Status refused = zombies->Save(20, MakeJobState(Tensors(), 2, 2));
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied) << refused;
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", true));
  EXPECT_EQ(listed.checkpoints_size(), 1) << listed.DebugString();
  EXPECT_EQ(listed.saves_size(), 0) << listed.DebugString();

  ASSERT_OK(job->Save(20, MakeJobState(Tensors(), 2, 3)));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 20, Tensors(), 2, 3), "");
}

TEST_F(Fencing, ANewAttemptEndsTheSaveOfTheOldOne) {
  ASSERT_OK_AND_ASSIGN(auto zombies, Job::Open(Options("run", "first"), 2));
  const JobState state = MakeJobState(Tensors(), 2, 1);
  ASSERT_OK_AND_ASSIGN(const SaveHandle half, zombies->rank(0).Save(10, state[0].state()));
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options("run", "second"), 2));
  const absl::Status ended = half.Wait();
  EXPECT_FALSE(ended.ok());
  ASSERT_OK_AND_ASSIGN(const SaveHandle late, zombies->rank(1).Save(10, state[1].state()));
  EXPECT_EQ(late.Wait().code(), absl::StatusCode::kPermissionDenied) << late.Wait();
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0) << listed.DebugString();
}

TEST_F(Fencing, AnOlderIncarnationCannotComeBack) {
  ASSERT_OK_AND_ASSIGN(auto first, Checkpointer::Open(Options("run", "first")));
  ASSERT_OK_AND_ASSIGN(auto second, Checkpointer::Open(Options("run", "second")));
  EXPECT_EQ(first->attempt(), 1u);
  EXPECT_EQ(second->attempt(), 2u);
  EXPECT_STATUS(Checkpointer::Open(Options("run", "first")), absl::StatusCode::kPermissionDenied,
                "attempt 2");
  ASSERT_OK_AND_ASSIGN(auto again, Checkpointer::Open(Options("run", "second")));
  EXPECT_EQ(again->attempt(), 2u);
}

// Each call that writes, by itself: a zombie may be anywhere in a save when it wakes up.
TEST_F(Fencing, EveryCallOfAZombieIsRefused) {
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  RawRank begun(client_.get(), "run", attempt, 0, 3), uploaded(client_.get(), "run", attempt, 1, 3),
      sealed(client_.get(), "run", attempt, 2, 3);
  for (RawRank* rank : {&begun, &uploaded, &sealed}) ASSERT_OK(rank->Begin(5, std::string(10'000, 'x')));
  for (RawRank* rank : {&uploaded, &sealed}) ASSERT_OK(rank->Upload());
  ASSERT_OK(sealed.Seal());

  ASSERT_OK(client_->OpenRun("run", "second"));
  const auto code = [](const auto& result) { return ToStatus(result).code(); };
  const auto refused = ::testing::AnyOf(absl::StatusCode::kPermissionDenied, absl::StatusCode::kAborted);
  EXPECT_THAT(code(begun.Upload()), refused);
  EXPECT_THAT(code(uploaded.Seal()), refused);
  EXPECT_THAT(code(sealed.Report()), refused);
  EXPECT_THAT(code(begun.Begin(6, "x")), absl::StatusCode::kPermissionDenied);

  // And leaves nothing.
  ASSERT_OK(client_->CollectGarbage());
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse status, client_->ServerStatus());
  EXPECT_EQ(status.parts(), 0u);
  EXPECT_EQ(status.live_bytes(), 0u);
  EXPECT_EQ(status.reserved_bytes(), 0u);
}

// Nobody can know which of them is right, so neither is: the save ends, and both are told why.
TEST_F(Fencing, TwoProcessesThatClaimOneRankAreToldSo) {
  CheckpointerOptions options = Options();
  options.world_size = 2;
  ASSERT_OK_AND_ASSIGN(auto one, Checkpointer::Open(options));
  ASSERT_OK_AND_ASSIGN(auto other, Checkpointer::Open(options));

  const JobState state = MakeJobState(Tensors(), 2, 1), contradiction = MakeJobState(Tensors(), 2, 2);
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, one->Save(10, state[0].state()));
  while (first.Progress().phase == SaveProgress::Phase::kUploading) std::this_thread::yield();
  ASSERT_OK_AND_ASSIGN(const SaveHandle second, other->Save(10, contradiction[0].state()));
  EXPECT_STATUS(second.Wait(), absl::StatusCode::kAlreadyExists, "two processes claim this rank");
  EXPECT_STATUS(first.Wait(), absl::StatusCode::kAborted, "two processes claim this rank");
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0);
}

TEST_F(Fencing, AReportThatComesTwiceIsTakenOnce) {
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  RawRank first(client_.get(), "run", attempt, 0, 2), second(client_.get(), "run", attempt, 1, 2);
  ASSERT_OK(first.Save(1, "one"));
  ASSERT_OK(first.Seal());
  ASSERT_OK_AND_ASSIGN(v1::SaveStatus status, first.Report());
  EXPECT_EQ(status.reported(), 1u);
  EXPECT_EQ(status.state(), v1::SaveStatus::SAVING);
  ASSERT_OK(second.Save(1, "two"));
  ASSERT_OK_AND_ASSIGN(status, first.Await(10'000));
  EXPECT_EQ(status.state(), v1::SaveStatus::COMMITTED);
  ASSERT_OK_AND_ASSIGN(status, second.Report());
  EXPECT_EQ(status.state(), v1::SaveStatus::COMMITTED);
}

}  // namespace
}  // namespace esker::testing
