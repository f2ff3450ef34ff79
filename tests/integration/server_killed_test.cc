// eskerd is killed in the middle of saves and restores, and started again: the client sends again what was
// lost.
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

using Phase = SaveProgress::Phase;

class ServerKilled : public EngineTest {};
INSTANTIATE_ENGINES(ServerKilled);

const std::vector<GlobalTensor>& LargeTensors() {
  static const auto* const kTensors = new std::vector<GlobalTensor>{
      {"weights", ElementType::kF32, {96, 256 << 10}},  // 96 MiB
      {"bias", ElementType::kBF16, {96, 10}},
  };
  return *kTensors;
}

const std::vector<GlobalTensor>& SmallTensors() {
  static const auto* const kTensors =
      new std::vector<GlobalTensor>{{"weights", ElementType::kF32, {8, 1000}}};
  return *kTensors;
}

// Progress has no event to wait for.
template <typename Condition>
bool SpinUntil(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST_P(ServerKilled, DuringTheUploadIsSurvived) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  bool killed_in_time = false;
  for (uint64_t step = 1; step <= 5 && !killed_in_time; ++step) {
    const JobState state = MakeJobState(LargeTensors(), 2, step);
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(step, state));
    ASSERT_TRUE(
        SpinUntil([&] { return handles[0].Progress().sent_bytes > (8u << 20) || handles[0].Done(); }));
    server_->Kill();
    killed_in_time = handles[0].Progress().phase == Phase::kUploading;
    ASSERT_OK(server_->Start());
    ASSERT_OK(Job::Wait(handles));
    EXPECT_EQ(RestoreDifference(server_->address(), "run", step, LargeTensors(), 2, step), "");
  }
  EXPECT_TRUE(killed_in_time) << "every save was faster than the kill";
}

TEST_P(ServerKilled, SeveralTimesDuringOneSaveIsSurvived) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  const JobState state = MakeJobState(LargeTensors(), 2, 1);
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(1, state));
  for (int kill = 0; kill < 4; ++kill) {
    const uint64_t sent = handles[1].Progress().sent_bytes;
    ASSERT_TRUE(
        SpinUntil([&] { return handles[1].Progress().sent_bytes > sent + (2u << 20) || handles[1].Done(); }));
    ASSERT_NO_FATAL_FAILURE(RestartServer());
  }
  ASSERT_OK(Job::Wait(handles));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 1, LargeTensors(), 2, 1), "");
}

TEST_P(ServerKilled, BetweenSealAndCommitIsSurvived) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  const JobState state = MakeJobState(SmallTensors(), 2, 3);
  // Rank 1 comes late, so the save of rank 0 is sealed and can't be committed.
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, job->rank(0).Save(4, state[0].state()));
  ASSERT_TRUE(SpinUntil([&] { return first.Progress().phase == Phase::kSealed; }));
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0);
  EXPECT_FALSE(first.Done());

  ASSERT_OK_AND_ASSIGN(const SaveHandle second, job->rank(1).Save(4, state[1].state()));
  ASSERT_OK(Job::Wait({first, second}));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 4, SmallTensors(), 2, 3), "");
}

TEST_P(ServerKilled, WhatWasCommittedIsThereAfterwards) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  for (uint64_t step = 1; step <= 5; ++step) {
    ASSERT_OK(job->Save(step, MakeJobState(SmallTensors(), 2, step)));
    ASSERT_NO_FATAL_FAILURE(RestartServer());
    for (uint64_t earlier = 1; earlier <= step; ++earlier) {
      EXPECT_EQ(RestoreDifference(server_->address(), "run", earlier, SmallTensors(), 2, earlier), "")
          << earlier;
    }
  }
}

TEST_P(ServerKilled, DuringARestoreGivesTheRightBytesOrAnError) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  ASSERT_OK(job->Save(1, MakeJobState(LargeTensors(), 1, 1)));
  RestoreTarget target(RowShards(LargeTensors(), 0, 1));
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<bool> over{false};
  absl::Status restored;
  ASSERT_OK_AND_ASSIGN(auto checkpoint, job->rank(0).OpenCheckpoint(1));
  std::thread restorer([&] {
    RestoreRequest request;
    request.tensors = target.tensors();
    request.progress = [&](uint64_t done, uint64_t) { done_bytes = done; };
    restored = checkpoint->Restore(request);
    over = true;
  });
  EXPECT_TRUE(SpinUntil([&] { return done_bytes > 0 || over; }));
  server_->Kill();
  const absl::Status restarted = server_->Start();
  restorer.join();
  ASSERT_OK(restarted);
  if (restored.ok()) {
    EXPECT_EQ(target.Difference(1), "");
  } else {
    EXPECT_EQ(restored.code(), absl::StatusCode::kUnavailable) << restored;
    EXPECT_EQ(RestoreDifference(server_->address(), "run", 1, LargeTensors(), 1, 1), "");
  }
}

TEST_P(ServerKilled, StoppedInGoodOrderDuringASaveIsSurvivedToo) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  const JobState state = MakeJobState(LargeTensors(), 2, 6);
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(6, state));
  ASSERT_TRUE(SpinUntil([&] { return handles[0].Progress().sent_bytes > 0 || handles[0].Done(); }));
  EXPECT_EQ(server_->Stop(), 0) << server_->Log();
  ASSERT_OK(server_->Start());
  ASSERT_OK(Job::Wait(handles));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 6, LargeTensors(), 2, 6), "");
}

}  // namespace
}  // namespace esker::testing
