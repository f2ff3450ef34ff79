#include "format/base/duration.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using std::chrono::milliseconds;

TEST(Duration, ParsesEachUnit) {
  const std::pair<const char*, int64_t> cases[] = {{"0", 0},
                                                   {"0s", 0},
                                                   {"1ms", 1},
                                                   {"500ms", 500},
                                                   {"30s", 30'000},
                                                   {"5m", 300'000},
                                                   {"12h", 43'200'000},
                                                   {"7d", 604'800'000},
                                                   {"2w", 1'209'600'000},
                                                   {"007s", 7'000},
                                                   {"9223372036854775807ms", INT64_MAX}};
  for (const auto& [text, millis] : cases) {
    ASSERT_OK_AND_ASSIGN(const milliseconds parsed, ParseDuration(text));
    EXPECT_EQ(parsed.count(), millis) << text;
  }
}

TEST(Duration, RefusesWhatIsNoDurationAndSaysWhatIs) {
  for (const char* text :
       {"", "s", "abc", "-5s", "+5s", " 5s", "5 s", "5s ", "1.5h", "5x", "5S", "1h30m", "0x5s"}) {
    EXPECT_STATUS(ParseDuration(text), absl::StatusCode::kInvalidArgument, "such as 500ms, 30s or 7d");
    EXPECT_STATUS(ParseDuration(text), absl::StatusCode::kInvalidArgument, absl::StrCat("'", text, "'"));
  }
  EXPECT_STATUS(ParseDuration("30"), absl::StatusCode::kInvalidArgument, "the unit is missing");
  EXPECT_STATUS(ParseDuration("5sec"), absl::StatusCode::kInvalidArgument, "the unit is unknown");
}

TEST(Duration, RefusesWhatDoesNotFit) {
  EXPECT_STATUS(ParseDuration("9223372036854775808ms"), absl::StatusCode::kInvalidArgument, "too long");
  EXPECT_STATUS(ParseDuration("9223372036854776s"), absl::StatusCode::kInvalidArgument, "too long");
  EXPECT_STATUS(ParseDuration("99999999999999999999s"), absl::StatusCode::kInvalidArgument, "too large");
}

TEST(Duration, FormatsWithTheLargestUnitThatDivides) {
  const std::pair<int64_t, const char*> cases[] = {
      {0, "0s"},          {1, "1ms"},         {999, "999ms"},      {1'000, "1s"},
      {1'500, "1500ms"},  {90'000, "90s"},    {300'000, "5m"},     {3'600'000, "1h"},
      {5'400'000, "90m"}, {86'400'000, "1d"}, {604'800'000, "1w"}, {-1'000, "-1s"}};
  for (const auto& [millis, text] : cases) EXPECT_EQ(FormatDuration(milliseconds(millis)), text);
}

TEST(Duration, RoundTrips) {
  std::mt19937_64 random(testing::TestSeed());
  for (int i = 0; i < 10'000; ++i) {
    const int64_t millis = static_cast<int64_t>(random() >> (1 + random() % 63));
    ASSERT_OK_AND_ASSIGN(const milliseconds parsed, ParseDuration(FormatDuration(milliseconds(millis))));
    ASSERT_EQ(parsed.count(), millis);
  }
}

}  // namespace
}  // namespace esker
