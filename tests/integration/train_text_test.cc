// The example job, as its users run it: killed at any point, it ends with the same bits as if nothing had
// happened.
#include <signal.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

using std::chrono::seconds;

class TrainText : public ServerTest {
 protected:
  void SetUp() override { StartServer(); }

  // A small model, so that sanitizers manage too.
  std::vector<std::string> Command(const std::string& run, int ranks, const std::vector<std::string>& more) {
    std::vector<std::string> command = {ProgramPath("esker-train-text"),
                                        "--server=" + server_->address(),
                                        "--run=" + run,
                                        "--text=" + SampleText(),
                                        absl::StrCat("--ranks=", ranks),
                                        "--hidden=128",
                                        "--steps=40",
                                        "--save-every=5",
                                        "--final-state=" + dir_ / (run + ".state"),
                                        "--loss-log=" + dir_ / (run + ".loss")};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }
  absl::StatusOr<std::unique_ptr<ChildProcess>> Launch(const std::string& run, int ranks,
                                                       const std::vector<std::string>& more = {}) {
    return ChildProcess::Start(
        {Command(run, ranks, more), dir_ / absl::StrCat(run, ".log.", ++launches_), {}, {}});
  }
  void Finish(const std::string& run, int ranks, const std::string& resumed_from) {
    ASSERT_OK_AND_ASSIGN(auto job, Launch(run, ranks));
    ASSERT_EQ(job->WaitExit(seconds(120)), 0) << job->Log();
    EXPECT_THAT(job->Log(), ::testing::HasSubstr(resumed_from));
  }
  std::string File(const std::string& name) {
    std::ifstream file(dir_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void ExpectSameEnd(const std::string& run, const std::string& as) {
    EXPECT_FALSE(File(run + ".state").empty());
    EXPECT_TRUE(File(run + ".state") == File(as + ".state"))
        << "the final states of " << run << " and " << as << " differ";
    EXPECT_EQ(File(run + ".loss"), File(as + ".loss"));
  }
  // Lets the job go on until the step is committed.
  static absl::Status AwaitCommit(ChildProcess& job, int step) {
    return job.WaitForLog(absl::StrCat("step ", step, ": committed"), seconds(60));
  }

  int launches_ = 0;
};

TEST_F(TrainText, KilledAndStartedAgainItEndsWithTheSameBits) {
  ASSERT_NO_FATAL_FAILURE(Finish("calm", 4, "no checkpoint yet"));
  ASSERT_OK_AND_ASSIGN(auto job, Launch("stormy", 4, {"--step-delay-ms=20"}));
  ASSERT_OK(AwaitCommit(*job, 10));
  job->Kill();
  ASSERT_NO_FATAL_FAILURE(Finish("stormy", 4, "resumed from step"));
  ExpectSameEnd("stormy", "calm");
}

TEST_F(TrainText, TheServerMayDieMeanwhile) {
  ASSERT_NO_FATAL_FAILURE(Finish("calm", 2, "no checkpoint yet"));
  ASSERT_OK_AND_ASSIGN(auto job, Launch("stormy", 2, {"--step-delay-ms=20"}));
  for (const int step : {5, 15, 25}) {
    ASSERT_OK(job->WaitForLog(absl::StrCat("step ", step, ": loss"), seconds(60)));
    server_->Kill();
    ASSERT_OK(server_->Start());
  }
  ASSERT_EQ(job->WaitExit(seconds(120)), 0) << job->Log();
  EXPECT_THAT(job->Log(), ::testing::Not(::testing::HasSubstr("failed")));
  ExpectSameEnd("stormy", "calm");
}

TEST_F(TrainText, AnotherNumberOfRanksGoesOnWithTheSameBits) {
  ASSERT_NO_FATAL_FAILURE(Finish("calm", 4, "no checkpoint yet"));
  ASSERT_OK_AND_ASSIGN(auto job, Launch("stormy", 4, {"--step-delay-ms=20"}));
  ASSERT_OK(AwaitCommit(*job, 5));
  job->Kill();
  ASSERT_OK_AND_ASSIGN(job, Launch("stormy", 3, {"--step-delay-ms=20", "--zstd"}));
  ASSERT_OK(AwaitCommit(*job, 15));
  job->Kill();
  ASSERT_NO_FATAL_FAILURE(Finish("stormy", 6, "saved by 3 ranks"));
  ExpectSameEnd("stormy", "calm");
}

TEST_F(TrainText, ARankThatDiesIsReplacedByANewIncarnation) {
  ASSERT_NO_FATAL_FAILURE(Finish("calm", 4, "no checkpoint yet"));
  ASSERT_OK_AND_ASSIGN(auto job, Launch("stormy", 4, {"--step-delay-ms=20", "--max-restarts=1"}));
  ASSERT_OK(AwaitCommit(*job, 10));
  // "train: started 4 ranks, pids A B C D"
  const std::string log = job->Log();
  std::istringstream pids(log.substr(log.find("pids ") + 5));
  pid_t first = 0, second = 0;
  pids >> first >> second;
  ASSERT_GT(second, 0);
  ASSERT_EQ(::kill(second, SIGKILL), 0);
  ASSERT_EQ(job->WaitExit(seconds(120)), 0) << job->Log();
  EXPECT_THAT(job->Log(), ::testing::HasSubstr("rank 1 died"));
  EXPECT_THAT(job->Log(), ::testing::HasSubstr("attempt 2: resumed from step"));
  ExpectSameEnd("stormy", "calm");
}

// P6: training goes on without a server; only the saves fail.
TEST_F(TrainText, WithoutAServerItTrainsToTheEndAndSaysThatNothingWasSaved) {
  ASSERT_NO_FATAL_FAILURE(Finish("calm", 2, "no checkpoint yet"));
  ASSERT_OK_AND_ASSIGN(auto job, Launch("alone", 2, {"--step-delay-ms=20", "--save-timeout-ms=200"}));
  ASSERT_OK(AwaitCommit(*job, 5));
  server_->Kill();
  EXPECT_EQ(job->WaitExit(seconds(120)), 3) << job->Log();
  EXPECT_THAT(job->Log(), ::testing::HasSubstr("save failed"));
  ExpectSameEnd("alone", "calm");
}

}  // namespace
}  // namespace esker::testing
