#include "server/coordinator/runs.h"

#include <set>
#include <thread>

#include "absl/strings/str_join.h"
#include "format/base/text.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

using RunsTest = CoordinatorTest;

TEST(NearestNames, SortsBySpelling) {
  EXPECT_EQ(absl::StrJoin(NearestNames("lama", {"gpt", "llama-2", "llama", "lama2"}, 3), " "),
            "lama2 llama llama-2");
  EXPECT_EQ(absl::StrJoin(NearestNames("x", {}, 3), " "), "");
  EXPECT_EQ(absl::StrJoin(NearestNames("ab", {"ba", "ab"}, 9), " "), "ab ba");
  EXPECT_EQ(absl::StrJoin(NearestNames("", {"abc", "a"}, 1), " "), "a");
}

TEST_F(RunsTest, TheFirstIncarnationGetsAttemptOneAndAllItsRanksTheSame) {
  EXPECT_EQ(OpenRun("first"), 1u);
  EXPECT_EQ(OpenRun("first"), 1u);
  EXPECT_EQ(OpenRun("second"), 2u);
  EXPECT_EQ(OpenRun("second"), 2u);
}

TEST_F(RunsTest, AttemptsOfDifferentRunsAreApart) {
  EXPECT_EQ(OpenRun("first", "a"), 1u);
  EXPECT_EQ(OpenRun("second", "a"), 2u);
  EXPECT_EQ(OpenRun("second", "b"), 1u);
}

TEST_F(RunsTest, AnOlderIncarnationIsRefusedWithBothNumbers) {
  OpenRun("first");
  OpenRun("second");
  OpenRun("third");
  EXPECT_STATUS(TryOpenRun("first"), absl::StatusCode::kPermissionDenied,
                "this process belongs to attempt 1, but attempt 3 has been opened since");
  EXPECT_EQ(OpenRun("third"), 3u);
}

TEST_F(RunsTest, AttemptsAndIncarnationsSurviveARestart) {
  OpenRun("first");
  OpenRun("second");
  RestartServer();
  EXPECT_EQ(OpenRun("second"), 2u);
  EXPECT_STATUS(TryOpenRun("first"), absl::StatusCode::kPermissionDenied, "attempt 1");
  EXPECT_EQ(OpenRun("third"), 3u);
}

TEST_F(RunsTest, TheNewest64IncarnationsAreRemembered) {
  for (int i = 1; i <= 70; ++i) EXPECT_EQ(OpenRun(StrCat("start", i)), static_cast<uint64_t>(i));
  EXPECT_STATUS(TryOpenRun("start7"), absl::StatusCode::kPermissionDenied, "attempt 7");
  EXPECT_STATUS(TryOpenRun("start69"), absl::StatusCode::kPermissionDenied, "attempt 69");
  EXPECT_EQ(OpenRun("start70"), 70u);
  // Forgotten: it counts as new. Its number of then stays refused.
  EXPECT_EQ(OpenRun("start6"), 71u);
  EXPECT_STATUS(TryBegin(6, 1, 0, 1), absl::StatusCode::kPermissionDenied, "attempt 6");
}

TEST_F(RunsTest, RanksThatOpenAtTheSameTimeGetOneAttempt) {
  constexpr int kThreads = 8;
  std::vector<uint64_t> attempts(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back([&, t] { attempts[t] = OpenRun("start"); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(attempts, std::vector<uint64_t>(kThreads, 1));
}

TEST_F(RunsTest, JobsThatStartAtTheSameTimeGetDifferentAttempts) {
  constexpr int kThreads = 8;
  std::vector<uint64_t> attempts(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] { attempts[t] = OpenRun(StrCat("start", t)); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::set<uint64_t>(attempts.begin(), attempts.end()),
            (std::set<uint64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST_F(RunsTest, OpeningTellsTheLatestCommittedStep) {
  EXPECT_FALSE(TryOpenRun("first")->has_latest());
  Save(1, 10);
  Save(1, 30);
  Save(1, 20);
  v1::OpenRunResponse response = *TryOpenRun("second");
  EXPECT_TRUE(response.has_latest());
  EXPECT_EQ(response.latest_step(), 30u);
  ASSERT_OK(Delete(30));
  EXPECT_EQ(TryOpenRun("second")->latest_step(), 20u);
  Begin(2, 40, 0, 2);
  EXPECT_EQ(TryOpenRun("second")->latest_step(), 20u) << "a save under way is no checkpoint";
}

TEST_F(RunsTest, StepZeroCanBeTheLatest) {
  OpenRun("first");
  Save(1, 0);
  const v1::OpenRunResponse response = *TryOpenRun("second");
  EXPECT_TRUE(response.has_latest());
  EXPECT_EQ(response.latest_step(), 0u);
}

TEST_F(RunsTest, BadNamesAreRefused) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_STATUS(TryOpenRun("first", "../etc"), kInvalid, "run name \"../etc\"");
  EXPECT_STATUS(TryOpenRun("first", ""), kInvalid, "run name");
  EXPECT_STATUS(TryOpenRun("first", "a/b"), kInvalid, "run name");
  EXPECT_STATUS(TryOpenRun("first", std::string(129, 'a')), kInvalid, "129 bytes");
  EXPECT_STATUS(TryOpenRun(""), kInvalid, "incarnation");
  EXPECT_STATUS(TryOpenRun(std::string(257, 'i')), kInvalid, "incarnation");
  EXPECT_STATUS(TryOpenRun("new\nline"), kInvalid, "incarnation");
  EXPECT_EQ(coordinator_->ListRuns({})->runs_size(), 0);
}

TEST_F(RunsTest, RunsAreListedByNameWithoutIncarnations) {
  OpenRun("x", "b");
  OpenRun("y", "b");
  OpenRun("x", "a");
  const absl::StatusOr<v1::ListRunsResponse> response = coordinator_->ListRuns({});
  ASSERT_OK(response);
  ASSERT_EQ(response->runs_size(), 2);
  EXPECT_EQ(response->runs(0).run(), "a");
  EXPECT_EQ(response->runs(1).run(), "b");
  EXPECT_EQ(response->runs(1).attempt(), 2u);
  EXPECT_EQ(response->runs(1).incarnations_size(), 0);
  EXPECT_EQ(response->runs(1).created_unix_ms(), clock_.UnixMillis());
}

TEST_F(RunsTest, AnUnknownRunSaysWhichThereAre) {
  EXPECT_STATUS(Get(1, "lama"), absl::StatusCode::kNotFound,
                "there is no run lama: this server has no runs yet");
  for (const char* run : {"gpt", "llama", "llama-2"}) OpenRun("x", run);
  EXPECT_STATUS(Get(1, "lama"), absl::StatusCode::kNotFound,
                "there is no run lama; the runs are: llama, llama-2, gpt");
  for (int i = 0; i < 10; ++i) OpenRun("x", StrCat("other-", i));
  EXPECT_STATUS(Get(1, "lama"), absl::StatusCode::kNotFound,
                "of the 13 runs, those with the most similar names are: llama, llama-2, gpt");
}

TEST_F(RunsTest, RetentionIsSetAndUnset) {
  OpenRun("x");
  v1::SetRetentionRequest request;
  request.set_run(kRun);
  request.mutable_policy()->set_keep_last(3);
  ASSERT_OK(coordinator_->SetRetention(request));
  RestartServer();
  EXPECT_EQ(coordinator_->ListRuns({})->runs(0).retention().keep_last(), 3u);
  request.clear_policy();
  ASSERT_OK(coordinator_->SetRetention(request));
  EXPECT_FALSE(coordinator_->ListRuns({})->runs(0).has_retention());
  request.set_run("unknown");
  EXPECT_STATUS(coordinator_->SetRetention(request), absl::StatusCode::kNotFound, "there is no run unknown");
}

}  // namespace
}  // namespace esker::testing
