#include "client/incarnation.h"

#include <map>
#include <string>

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

absl::StatusOr<std::string> Choose(const std::string& given, uint32_t world_size,
                                   const std::map<std::string, std::string>& environment) {
  return ChooseIncarnation(given, world_size, [&](const char* name) -> const char* {
    const auto variable = environment.find(name);
    return variable == environment.end() ? nullptr : variable->second.c_str();
  });
}

TEST(Incarnation, TheGivenOneComesFirst) {
  ASSERT_OK_AND_ASSIGN(const std::string token, Choose("mine", 4, {{"ESKER_INCARNATION", "other"}}));
  EXPECT_EQ(token, "mine");
}

TEST(Incarnation, OwnVariableThenTorchThenSlurm) {
  const std::map<std::string, std::string> all = {{"ESKER_INCARNATION", "e"},
                                                  {"TORCHELASTIC_RUN_ID", "job"},
                                                  {"TORCHELASTIC_RESTART_COUNT", "2"},
                                                  {"SLURM_JOB_ID", "99"},
                                                  {"SLURM_RESTART_COUNT", "1"}};
  std::map<std::string, std::string> environment = all;
  ASSERT_OK_AND_ASSIGN(std::string token, Choose("", 4, environment));
  EXPECT_EQ(token, "e");
  environment.erase("ESKER_INCARNATION");
  ASSERT_OK_AND_ASSIGN(token, Choose("", 4, environment));
  EXPECT_EQ(token, "torchelastic-job-2");
  environment.erase("TORCHELASTIC_RUN_ID");
  ASSERT_OK_AND_ASSIGN(token, Choose("", 4, environment));
  EXPECT_EQ(token, "slurm-99-1");
  environment.erase("SLURM_RESTART_COUNT");
  ASSERT_OK_AND_ASSIGN(token, Choose("", 4, environment));
  EXPECT_EQ(token, "slurm-99-0");
}

TEST(Incarnation, TorchrunsDefaultIdIsNone) {
  ASSERT_OK_AND_ASSIGN(const std::string token,
                       Choose("", 4, {{"TORCHELASTIC_RUN_ID", "none"}, {"SLURM_JOB_ID", "5"}}));
  EXPECT_EQ(token, "slurm-5-0");
}

TEST(Incarnation, ASingleRankMayMakeOneUp) {
  ASSERT_OK_AND_ASSIGN(const std::string one, Choose("", 1, {}));
  ASSERT_OK_AND_ASSIGN(const std::string two, Choose("", 1, {}));
  EXPECT_NE(one, two);
}

TEST(Incarnation, SeveralRanksMustBeTold) {
  EXPECT_STATUS(Choose("", 2, {}), absl::StatusCode::kInvalidArgument, "ESKER_INCARNATION");
}

TEST(Incarnation, IllegalTokensNameTheirSource) {
  EXPECT_STATUS(Choose("a\nb", 1, {}), absl::StatusCode::kInvalidArgument, "CheckpointerOptions");
  EXPECT_STATUS(Choose("", 1, {{"ESKER_INCARNATION", std::string(300, 'x')}}),
                absl::StatusCode::kInvalidArgument, "ESKER_INCARNATION");
}

}  // namespace
}  // namespace esker::testing
