#include "tools/output.h"

#include <limits>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"
#include "tools/exit_code.h"
#include "tools/progress.h"
#include "tools/split.h"

namespace esker {
namespace {

// --- exit codes -------------------------------------------------------------------------------------------

TEST(ExitCode, EachKindOfErrorHasItsOwn) {
  const auto code = [](absl::StatusCode status) { return ExitCodeOf(absl::Status(status, "x")); };
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
  EXPECT_EQ(code(absl::StatusCode::kInternal), ExitCode::kFailed);
  EXPECT_EQ(code(absl::StatusCode::kUnknown), ExitCode::kFailed);
  EXPECT_EQ(code(absl::StatusCode::kUnimplemented), ExitCode::kFailed);
  EXPECT_EQ(code(absl::StatusCode::kInvalidArgument), ExitCode::kUsage);
  EXPECT_EQ(code(absl::StatusCode::kNotFound), ExitCode::kNotFound);
  EXPECT_EQ(code(absl::StatusCode::kDataLoss), ExitCode::kDamaged);
  EXPECT_EQ(code(absl::StatusCode::kUnavailable), ExitCode::kUnreachable);
  EXPECT_EQ(code(absl::StatusCode::kDeadlineExceeded), ExitCode::kUnreachable);
  EXPECT_EQ(code(absl::StatusCode::kAlreadyExists), ExitCode::kRefused);
  EXPECT_EQ(code(absl::StatusCode::kPermissionDenied), ExitCode::kRefused);
  EXPECT_EQ(code(absl::StatusCode::kResourceExhausted), ExitCode::kRefused);
  EXPECT_EQ(code(absl::StatusCode::kFailedPrecondition), ExitCode::kRefused);
}

TEST(ExitCode, HelpNamesAll) {
  for (int code = 0; code <= 6; ++code) {
    EXPECT_THAT(ExitCodeHelp(), ::testing::HasSubstr("\n  " + std::to_string(code) + "  "));
  }
}

TEST(ErrorLine, IsOneLine) {
  EXPECT_EQ(ErrorLine(absl::InternalError("two\nlines\r\x1b[31m"), "h:1"), "two lines  [31m");
  EXPECT_EQ(ErrorLine(absl::Status(absl::StatusCode::kInternal, ""), "h:1"), "INTERNAL");
}

TEST(ErrorLine, OfAServerThatIsNotReachedNamesItAndTheOption) {
  const std::string line = ErrorLine(absl::UnavailableError("connection refused"), "h:1");
  EXPECT_THAT(line, ::testing::HasSubstr("server h:1: connection refused"));
  EXPECT_THAT(line, ::testing::HasSubstr("--server"));
  EXPECT_EQ(ErrorLine(absl::UnavailableError("start it, or use --server"), "h:1"),
            "start it, or use --server");
}

// --- text -------------------------------------------------------------------------------------------------

TEST(Table, AlignsColumnsAndLeavesNoSpacesAtTheEnd) {
  Table table({{"name"}, {"bytes", Align::kRight}, {"note"}});
  EXPECT_TRUE(table.empty());
  table.Add({"größe", "7", ""});
  table.Add({"b", "1000", "x"});
  EXPECT_EQ(table.ToString(),
            "NAME   BYTES  NOTE\n"
            "größe      7\n"
            "b       1000  x\n");
}

TEST(HumanBytes, UsesPowersOf1000) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.00 kB");
  EXPECT_EQ(HumanBytes(2'147'483'648), "2.15 GB");
  EXPECT_EQ(HumanBytes(999'999'999), "1.00 GB");
  EXPECT_EQ(HumanBytes(std::numeric_limits<uint64_t>::max()), "18.4 EB");
}

TEST(HumanDuration, PicksItsUnits) {
  EXPECT_EQ(HumanDuration(-5), "0 ms");
  EXPECT_EQ(HumanDuration(999), "999 ms");
  EXPECT_EQ(HumanDuration(59'999), "59.9 s");
  EXPECT_EQ(HumanDuration(312'000), "5 min 12 s");
  EXPECT_EQ(HumanDuration(3'600'000), "1 h 0 min");
  EXPECT_EQ(HumanDuration(int64_t{86'400'000} * 4 + 21'600'000), "4 d 6 h");
}

TEST(HumanTime, OfNothingIsADash) {
  EXPECT_EQ(HumanTime(0), "-");
  EXPECT_EQ(HumanTime(1'700'000'000'000).size(), 19u);
}

TEST(ParseBytes, TakesBothKindsOfUnits) {
  const auto parse = [](const char* text) { return ParseBytes(text).value_or(0); };
  EXPECT_EQ(parse("4096"), 4096u);
  EXPECT_EQ(parse("7B"), 7u);
  EXPECT_EQ(parse("2GiB"), uint64_t{2} << 30);
  EXPECT_EQ(parse("500 MB"), 500'000'000u);
  EXPECT_EQ(parse("1.5kB"), 1500u);
  EXPECT_EQ(parse("1TiB"), uint64_t{1} << 40);
}

TEST(ParseBytes, RefusesWhatIsNotBytes) {
  for (const char* text : {"", "GiB", "-1", "2G", "2GiBs", "1e9", "1..2", "9999999999TiB", "nan", "0x10"}) {
    EXPECT_STATUS(ParseBytes(text), absl::StatusCode::kInvalidArgument, "is not a number of bytes");
  }
}

TEST(JsonText, ReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonText({{"a", "x\xff"}}, false), "{\"a\":\"x\xef\xbf\xbd\"}");
}

// --- progress ---------------------------------------------------------------------------------------------

TEST(ProgressLine, ShowsRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine("saving", 500'000'000, 2'000'000'000, 1000, 80),
            "saving  [#####.................]   25%  500 MB of 2.00 GB  0.50 GB/s  3.0 s left");
  EXPECT_EQ(ProgressLine("saving", 0, 100, 0, 80).substr(0, 10), "saving  [.");
}

TEST(ProgressLine, FitsNarrowTerminals) {
  for (int columns = 1; columns < 120; ++columns) {
    EXPECT_LE(ProgressLine("verifying", 5, 7, 1000, columns).size(), static_cast<size_t>(columns));
  }
}

class ProgressBarTest : public ::testing::Test {
 protected:
  testing::FakeClock clock_;
  std::string drawn_;
  std::function<void(const std::string&)> write_ = [this](const std::string& text) { drawn_ += text; };
};

TEST_F(ProgressBarTest, DrawsAtMostTenTimesASecondAndGoes) {
  {
    ProgressBar bar("x", 79, &clock_, write_);
    for (int i = 0; i < 1000; ++i) bar.Update(static_cast<uint64_t>(i), 1000);
    EXPECT_EQ(std::count(drawn_.begin(), drawn_.end(), '\r'), 1);
    clock_.Advance(100);
    bar.Update(1000, 1000);
    EXPECT_THAT(drawn_, ::testing::HasSubstr("100%"));
  }
  EXPECT_THAT(drawn_, ::testing::EndsWith("\r\x1b[K"));
}

TEST_F(ProgressBarTest, NeverGoesBack) {
  ProgressBar bar("x", 79, &clock_, write_);
  bar.Update(900, 1000);
  clock_.Advance(200);
  drawn_.clear();
  bar.Update(100, 1000);
  EXPECT_THAT(drawn_, ::testing::HasSubstr("90%"));
}

TEST_F(ProgressBarTest, WithoutATerminalNothingIsDrawn) {
  ProgressBar bar("x", 79, &clock_, nullptr);
  bar.Update(1, 2);
}

TEST_F(ProgressBarTest, ThatNeverBeganLeavesNothing) {
  { ProgressBar bar("x", 79, &clock_, write_); }
  EXPECT_EQ(drawn_, "");
}

// --- spreading tensors over ranks -------------------------------------------------------------------------

TEST(SplitOverRanks, CutsRowsEvenlyAndSpreadsTheRest) {
  static const char bytes[4096] = {};
  const std::vector<SourceTensor> tensors = {
      {WholeTensor("cut", ElementType::kU8, {10, 3}), bytes},
      {WholeTensor("few rows", ElementType::kU8, {3, 100}), bytes + 30},
      {WholeTensor("scalar", ElementType::kF64, {}), bytes + 330},
      {WholeTensor("empty", ElementType::kF64, {8, 0}), bytes},
      {WholeTensor("also whole", ElementType::kU8, {2, 90}), bytes + 400}};
  const auto split = SplitOverRanks(tensors, 4);
  ASSERT_EQ(split.size(), 4u);
  uint64_t next_row = 0;
  uint64_t bytes_seen = 0;
  size_t whole = 0;
  for (const auto& rank : split) {
    for (const SourceTensor& tensor : rank) {
      bytes_seen += tensor.box.bytes();
      if (tensor.box.name != "cut") {
        EXPECT_EQ(tensor.box.extent, tensor.box.shape);
        ++whole;
        continue;
      }
      EXPECT_EQ(tensor.box.offset[0], next_row);
      EXPECT_EQ(tensor.data, bytes + next_row * 3);
      EXPECT_GE(tensor.box.extent[0], 2u);
      EXPECT_LE(tensor.box.extent[0], 3u);
      next_row += tensor.box.extent[0];
    }
  }
  EXPECT_EQ(next_row, 10u);
  EXPECT_EQ(whole, 4u);
  EXPECT_EQ(bytes_seen, 30u + 300 + 8 + 180);
  // The two large ones that can't be cut don't share a rank.
  for (const auto& rank : split) {
    EXPECT_LE(std::count_if(rank.begin(), rank.end(), [](const auto& t) { return t.box.bytes() >= 180; }), 1);
  }
}

TEST(SplitOverRanks, OneRankGetsEverythingWhole) {
  static const char bytes[64] = {};
  const auto split = SplitOverRanks({{WholeTensor("w", ElementType::kU8, {64}), bytes}}, 1);
  ASSERT_EQ(split.size(), 1u);
  ASSERT_EQ(split[0].size(), 1u);
  EXPECT_EQ(split[0][0].box.extent, std::vector<uint64_t>{64});
}

}  // namespace
}  // namespace esker
