// Saves through shared memory: what the server has in its hands when Save returns does not die with the
// ranks.
//   ESKER_HAND_OVER_ROUNDS  jobs whose ranks are killed right after Save returned (100)
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "tests/integration/dying_rank.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

constexpr int kKilled = 128 + SIGKILL;

uint64_t Rounds() {
  const char* given = std::getenv("ESKER_HAND_OVER_ROUNDS");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 100;
}

class HandedOverSave : public ServerTest {
 protected:
  void SetUp() override { ASSERT_NO_FATAL_FAILURE(StartServer()); }

  // Runs a job whose ranks save `step` and die; returns how each of them ended.
  std::vector<int> RunDyingJob(uint32_t ranks, uint64_t step, const std::string& when,
                               std::optional<uid_t> user = std::nullopt) {
    std::vector<std::unique_ptr<ChildProcess>> processes;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(
          {{ProgramPath("dying_rank"), server_->address(), "run", absl::StrCat("start-", step),
            absl::StrCat(rank), absl::StrCat(ranks), absl::StrCat(step), absl::StrCat(step), when},
           dir_ / "ranks.log",
           {},
           user});
      EXPECT_OK(process.status());
      if (process.ok()) processes.push_back(*std::move(process));
    }
    std::vector<int> exits;
    for (const auto& process : processes)
      exits.push_back(process->WaitExit(std::chrono::seconds(60)).value_or(-1));
    return exits;
  }

  // The next start of the job: it gets no attempt before the server is done with what the last one left.
  absl::Status OpenNextAttempt(uint64_t step) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (true) {
      const absl::Status opened = client_->OpenRun("run", absl::StrCat("after-", step)).status();
      if (!absl::IsUnavailable(opened) || std::chrono::steady_clock::now() > deadline) return opened;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  // Rank 0's part of a committed checkpoint.
  v1::PartEntry FirstPart(const std::string& run, uint64_t step) {
    v1::GetCheckpointRequest request;
    request.set_run(run);
    request.set_step(step);
    request.add_ranks(0);
    const absl::StatusOr<v1::GetCheckpointResponse> checkpoint =
        client_->Call(&v1::Coordinator::Stub::GetCheckpoint, request);
    EXPECT_OK(checkpoint);
    return checkpoint.ok() && checkpoint->parts_size() == 1 ? checkpoint->parts(0) : v1::PartEntry();
  }

  bool IsListed(uint64_t step) {
    const absl::StatusOr<v1::ListCheckpointsResponse> listed = client_->List("run", false);
    EXPECT_OK(listed.status());
    return listed.ok() &&
           std::any_of(listed->checkpoints().begin(), listed->checkpoints().end(),
                       [&](const v1::CheckpointRecord& record) { return record.step() == step; });
  }
};

TEST_F(HandedOverSave, IsCommittedThoughAllRanksAreKilledWhenSaveReturns) {
  const uint64_t first = TestSeed() % 1'000'000 + 1;
  for (uint64_t round = 0; round < Rounds(); ++round) {
    const uint64_t step = first + round;
    const auto ranks = static_cast<uint32_t>(1 + step % 3);
    ASSERT_EQ(RunDyingJob(ranks, step, "after"), std::vector<int>(ranks, kKilled)) << "step " << step;
    ASSERT_OK(OpenNextAttempt(step));
    ASSERT_TRUE(IsListed(step)) << "step " << step;
    ASSERT_EQ(RestoreDifference(server_->address(), "run", step, DyingTensors(), ranks, step), "");
    if (round % 4 == 3) ASSERT_OK(client_->Delete("run", step));
  }
}

TEST_F(HandedOverSave, AsADeltaIsCommittedThoughAllRanksAreKilledWhenSaveReturns) {
  for (uint64_t round = 0; round < std::max<uint64_t>(Rounds() / 10, 5); ++round) {
    const uint64_t step = 2 * round + 2;
    const auto ranks = static_cast<uint32_t>(1 + round % 3);
    ASSERT_EQ(RunDyingJob(ranks, step, "delta"), std::vector<int>(ranks, kKilled)) << "step " << step;
    ASSERT_OK(OpenNextAttempt(step));
    ASSERT_TRUE(IsListed(step)) << "step " << step;
    EXPECT_EQ(FirstPart("run", step).codec(), static_cast<uint32_t>(CodecId::kDelta));
    EXPECT_LT(FirstPart("run", step).stored_bytes(), FirstPart("run", step).raw_bytes() / 4);
    ASSERT_OK(client_->Delete("run", step - 1));
    ASSERT_OK(client_->CollectGarbage());
    ASSERT_EQ(TrainingDifference(server_->address(), "run", step, ranks, step), "");
  }
}

TEST_F(HandedOverSave, IsWholeOrAbsentIfARankIsKilledWhileItCopies) {
  const uint64_t first = TestSeed() % 1'000'000 + 1;
  uint64_t absent = 0;
  for (uint64_t round = 0; round < std::max<uint64_t>(Rounds() / 4, 5); ++round) {
    const uint64_t step = first + round;
    ASSERT_EQ(RunDyingJob(2, step, "while"), std::vector<int>(2, kKilled)) << "step " << step;
    ASSERT_OK(OpenNextAttempt(step));
    if (IsListed(step)) {
      ASSERT_EQ(RestoreDifference(server_->address(), "run", step, DyingTensors(), 2, step), "");
    } else {
      ++absent;
    }
  }
  std::printf("%llu were absent\n", static_cast<unsigned long long>(absent));
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse status, client_->ServerStatus());
  EXPECT_EQ(status.open_saves(), 0u);
  EXPECT_EQ(status.reserved_bytes(), 0u);
}

TEST_F(HandedOverSave, SurvivesThatTheServerIsKilledInBetween) {
  CheckpointerOptions options = Options();
  options.transport = Transport::kSharedMemory;
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 2));
  for (uint64_t step = 1; step <= 4; ++step) {
    const JobState state = MakeJobState(DyingTensors(), 2, step);
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(step, state));
    ASSERT_NO_FATAL_FAILURE(RestartServer());
    ASSERT_OK(Job::Wait(handles));
    EXPECT_EQ(handles[0].Progress().transport, Transport::kSharedMemory);
    EXPECT_EQ(RestoreDifference(server_->address(), "run", step, DyingTensors(), 2, step), "");
  }
}

// Before that the next start of the job could come first.
TEST_F(HandedOverSave, ReturnsOnceTheServerHasTakenIt) {
  CheckpointerOptions options = Options();
  options.transport = Transport::kSharedMemory;
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 1));
  const JobState state = MakeJobState({{"bias", ElementType::kBF16, {60, 11}}}, 1, 1);
  ASSERT_OK(job->Save(1, state));
  server_->process()->Freeze();
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(2, state));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  EXPECT_EQ(handles[0].Progress().phase, SaveProgress::Phase::kUploading);
  server_->process()->Signal(SIGCONT);
  ASSERT_OK(Job::Wait(handles));
  EXPECT_TRUE(IsListed(2));
}

TEST_F(HandedOverSave, IsTakenAtOnceByAServerThatWasStartedAnew) {
  CheckpointerOptions options = Options();
  options.transport = Transport::kSharedMemory;
  for (uint64_t step = 1; step < 20; step += 2) {
    options.incarnation = absl::StrCat("start-", step);
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 1));
    const JobState state = MakeJobState({{"bias", ElementType::kBF16, {60, 11}}}, 1, step);
    ASSERT_OK(job->Save(step, state));
    ASSERT_NO_FATAL_FAILURE(RestartServer());
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(step + 1, state));
    ASSERT_OK(OpenNextAttempt(step));
    EXPECT_TRUE(IsListed(step + 1)) << step + 1;
  }
}

TEST_F(HandedOverSave, WaitsForTheEndOfAStoppingServerAndGoesOnWithTheNext) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  const JobState state = MakeJobState(DyingTensors(), 2, 7);
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(7, state));
  EXPECT_EQ(server_->Stop(), 0);
  ASSERT_OK(server_->Start());
  ASSERT_OK(Job::Wait(handles));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 7, DyingTensors(), 2, 7), "");
}

TEST_F(HandedOverSave, KnowsWhatIsUnchangedAndWhatTheServerHolds) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  ASSERT_OK(job->Save(1, MakeJobState(DyingTensors(), 1, 1)));
  const JobState same = MakeJobState(DyingTensors(), 1, 1);
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(2, same));
  ASSERT_OK(Job::Wait(handles));
  const SaveProgress progress = handles[0].Progress();
  EXPECT_EQ(progress.transport, Transport::kSharedMemory);
  EXPECT_EQ(progress.unchanged_bytes, progress.raw_bytes);
  EXPECT_EQ(progress.deduplicated_bytes, progress.raw_bytes);
  EXPECT_EQ(progress.processed_bytes, progress.raw_bytes);
  EXPECT_EQ(progress.sent_bytes, 0u);
}

TEST_F(HandedOverSave, IsEncodedByTheServer) {
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes}) {
    CheckpointerOptions options = Options("run", absl::StrCat("codec ", static_cast<int>(compression)));
    options.compression = compression;
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 2));
    const std::vector<GlobalTensor> tensors = {{"zeros", ElementType::kF32, {8, 500'000}}};
    JobState state(2);
    std::vector<float> zeros(4 * 500'000, 1.5F);
    for (uint32_t rank = 0; rank < 2; ++rank) {
      for (const TensorBox& box : RowShards(tensors, rank, 2)) state[rank].AddTensor(box, 3);
    }
    const auto step = static_cast<uint64_t>(compression);
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(step, state));
    ASSERT_OK(Job::Wait(handles));
    EXPECT_EQ(handles[0].Progress().transport, Transport::kSharedMemory);
    EXPECT_EQ(RestoreDifference(server_->address(), "run", step, tensors, 1, 3), "");
  }
}

// What is chosen depends on the machine; that it is right and written down does not.
TEST_F(HandedOverSave, SaysWhatCodecItChose) {
  const std::vector<GlobalTensor> tensors = {{"weights", ElementType::kF32, {16, 1 << 20}}};  // 64 MiB
  for (const Transport transport : {Transport::kSharedMemory, Transport::kGrpc}) {
    const auto run = absl::StrCat("auto-", static_cast<int>(transport));
    CheckpointerOptions options = Options(run);
    options.compression = Compression::kAuto;
    options.transport = transport;
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 1));
    for (uint64_t step = 1; step <= 3; ++step) {
      ASSERT_OK(job->Save(step, MakeJobState(tensors, 1, step)));
      const v1::PartEntry part = FirstPart(run, step);
      const auto codec = static_cast<CodecId>(part.codec());
      EXPECT_TRUE(codec == CodecId::kRaw || codec == CodecId::kPlanes);
      if (step == 1) {
        EXPECT_EQ(codec, CodecId::kRaw);
      }
      if (codec == CodecId::kRaw) {
        EXPECT_EQ(part.stored_bytes(), part.raw_bytes());
      }
      EXPECT_EQ(RestoreDifference(server_->address(), run, step, tensors, 1, step), "");
    }
  }
}

TEST_F(HandedOverSave, GoesThroughGrpcWhereTheSocketIsNotSeenAndSaysWhyOnce) {
  ASSERT_EQ(::unlink(absl::StrCat(server_->data_directory(), "/local.sock").c_str()), 0);
  ::testing::internal::CaptureStderr();
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  for (uint64_t step = 1; step <= 2; ++step) {
    const JobState state = MakeJobState(DyingTensors(), 1, step);
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(step, state));
    ASSERT_OK(Job::Wait(handles));
    EXPECT_EQ(handles[0].Progress().transport, Transport::kGrpc);
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), IsOneLineWith("seems to be on another host"));

  CheckpointerOptions must_share = Options("run", "second");
  must_share.transport = Transport::kSharedMemory;
  EXPECT_STATUS(Job::Open(must_share, 1), absl::StatusCode::kNotFound, "local.sock");
}

TEST_F(HandedOverSave, SaysOnceThatTheSocketIsNotServed) {
  ASSERT_NO_FATAL_FAILURE(EndLocalSocket());
  ::testing::internal::CaptureStderr();
  {
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
    for (uint64_t step = 1; step <= 2; ++step)
      ASSERT_OK(job->Save(step, MakeJobState(DyingTensors(), 1, step)));
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), IsOneLineWith("local.sock"));

  ::testing::internal::CaptureStderr();
  CheckpointerOptions options = Options("run", "second");
  options.transport = Transport::kGrpc;
  {
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 1));
    ASSERT_OK(job->Save(3, MakeJobState(DyingTensors(), 1, 3)));
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(HandedOverSave, OfAnotherUserIsRefusedSharedMemory) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to be another user";
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0777), 0);
  ASSERT_EQ(::chmod(server_->data_directory().c_str(), 0755), 0);
  EXPECT_EQ(RunDyingJob(1, 5, "after", 65534), std::vector<int>{1});
  EXPECT_FALSE(IsListed(5));
}

}  // namespace
}  // namespace esker::testing
