#include "format/names.h"

#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(RunName, Legal) {
  for (const std::string& run :
       {std::string("llama-70b"), std::string("0"), std::string("a.b_c-d"), std::string(128, 'x')}) {
    EXPECT_OK(ValidateRunName(run));
  }
}

TEST(RunName, Illegal) {
  for (const std::string& run :
       {std::string(), std::string(129, 'x'), std::string("../x"), std::string(".x"), std::string("-x"),
        std::string("a/b"), std::string("Llama"), std::string("a b"), std::string("a@b"),
        std::string("a\0b", 3), std::string("\xc3\xa4")}) {
    EXPECT_STATUS(ValidateRunName(run), kInvalid, "run name");
  }
}

TEST(TensorName, Legal) {
  for (const std::string& name : {std::string("model/layers.0/../weight"), std::string(4096, 'x'),
                                  std::string(" "), std::string("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"),
                                  std::string("\xf4\x8f\xbf\xbf"), std::string("\xed\x9f\xbf\xee\x80\x80")}) {
    EXPECT_OK(ValidateTensorName(name));
  }
}

TEST(TensorName, Illegal) {
  EXPECT_STATUS(ValidateTensorName(""), kInvalid, "1 to 4096");
  EXPECT_STATUS(ValidateTensorName(std::string(10240, 'x')), kInvalid, "10240 bytes");
  EXPECT_STATUS(ValidateTensorName(std::string("a\0b", 3)), kInvalid, "NUL");
  for (const char* name :
       {"\x80", "\xc3", "a\xc3z", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xe2\x82", "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xf0\x9f\x98"}) {
    EXPECT_STATUS(ValidateTensorName(name), kInvalid, "UTF-8");
  }
}

TEST(Incarnation, PrintableAsciiOnly) {
  EXPECT_OK(ValidateIncarnation("job 17, start 3 ~!"));
  EXPECT_OK(ValidateIncarnation(std::string(256, 'x')));
  for (const std::string& token : {std::string(), std::string(257, 'x'), std::string("a\nb"),
                                   std::string("\x7f"), std::string("\xc3\xa4")}) {
    EXPECT_STATUS(ValidateIncarnation(token), kInvalid, "incarnation");
  }
}

TEST(Step, NegativeNumbersAreTooLarge) {
  EXPECT_OK(ValidateStep(0));
  EXPECT_OK(ValidateStep(kMaxStep));
  EXPECT_STATUS(ValidateStep(static_cast<uint64_t>(int64_t{-1})), kInvalid, "negative");
}

TEST(Rank, InsideTheWorld) {
  EXPECT_OK(ValidateRank(0, 1));
  EXPECT_OK(ValidateRank(kMaxWorldSize - 1, kMaxWorldSize));
  EXPECT_STATUS(ValidateRank(4, 4), kInvalid, "rank 4: expected 0 to 3");
  EXPECT_STATUS(ValidateRank(0, 0), kInvalid, "world size 0");
  EXPECT_STATUS(ValidateRank(0, uint64_t{1} << 40), kInvalid, "world size");
  EXPECT_STATUS(ValidateRank(~uint64_t{0}, 4), kInvalid, "rank");
}

TEST(CheckpointName, Parses) {
  ASSERT_OK_AND_ASSIGN(CheckpointName name, ParseCheckpointName("llama-70b@1200"));
  EXPECT_EQ(name.run, "llama-70b");
  EXPECT_FALSE(name.latest);
  EXPECT_EQ(name.step, 1200u);
  ASSERT_OK_AND_ASSIGN(name, ParseCheckpointName("r@latest"));
  EXPECT_TRUE(name.latest);
  ASSERT_OK_AND_ASSIGN(name, ParseCheckpointName("r@9223372036854775807"));
  EXPECT_EQ(name.step, kMaxStep);
}

TEST(CheckpointName, Illegal) {
  for (const char* text :
       {"", "llama", "llama@", "@3", "../x@3", "r@-1", "r@+1", "r@ 1", "r@1 ", "r@0x10", "r@1e3", "r@Latest",
        "r@9223372036854775808", "r@99999999999999999999999", "r@1@2"}) {
    EXPECT_STATUS(ParseCheckpointName(text), kInvalid, "expected RUN@STEP or RUN@latest");
  }
}

TEST(Printable, EscapesAndCuts) {
  EXPECT_EQ(Printable("plain text"), "plain text");
  EXPECT_EQ(Printable(std::string_view("a\0\n\x1b[31m\xff", 9)), "a\\x00\\x0a\\x1b[31m\\xff");
  EXPECT_EQ(Printable("a\"b\\c"), "a\\\"b\\\\c");
  EXPECT_EQ(Printable(std::string(1000, 'x'), 10), "xxxxxxxxxx...");
  EXPECT_EQ(Printable("1234567890", 10), "1234567890");
}

TEST(CatalogKeys, SortByStepAndStayInsideTheirRun) {
  EXPECT_EQ(RunKey("a"), "run/a");
  EXPECT_EQ(SaveKey("a", 7), "save/a/00000000000000000007");
  EXPECT_EQ(CheckpointKey("a", ~uint64_t{0}), "ckpt/a/18446744073709551615");
  EXPECT_LT(CheckpointKey("a", 9), CheckpointKey("a", 10));
  EXPECT_EQ(SaveKey("a", 1).rfind(SavePrefix("a"), 0), 0u);
  EXPECT_NE(CheckpointKey("ab", 1).rfind(CheckpointPrefix("a"), 0), 0u);
}

}  // namespace
}  // namespace esker
