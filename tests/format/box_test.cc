#include "format/box.h"

#include "tests/format/tensor_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::ForEachIndex;
using testing::Holds;
using testing::PositionIn;
using testing::RandomBox;
using testing::RandomShape;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::vector<ByteRun> RunsOf(const Box& source, const Box& target, const Box& part, uint64_t element_bytes) {
  std::vector<ByteRun> runs;
  ForEachRun(source, target, part, element_bytes, [&](const ByteRun& run) { runs.push_back(run); });
  return runs;
}

TEST(Box, AScalarHasOneElement) {
  const Box scalar = WholeBox({});
  EXPECT_EQ(scalar.elements(), 1u);
  EXPECT_FALSE(scalar.empty());
  EXPECT_OK(ValidateBox(scalar, {}, 8));
  EXPECT_EQ(Intersect(scalar, scalar), scalar);
  EXPECT_TRUE(Subtract(scalar, scalar).empty());
  EXPECT_EQ(RunsOf(scalar, scalar, scalar, 8), (std::vector<ByteRun>{{0, 0, 8}}));
  EXPECT_EQ(scalar.ToString(), "[]");
}

TEST(Box, PrintsIntervals) { EXPECT_EQ((Box{{0, 8}, {4, 8}}).ToString(), "[0:4, 8:16]"); }

TEST(ValidateBox, RefusesWhatIsOutside) {
  EXPECT_OK(ValidateBox({{0, 0}, {4, 8}}, {4, 8}, 2));
  EXPECT_OK(ValidateBox({{4, 8}, {0, 0}}, {4, 8}, 2));
  EXPECT_STATUS(ValidateBox({{0, 1}, {4, 8}}, {4, 8}, 2), kInvalid, "dimension 1");
  EXPECT_STATUS(ValidateBox({{5, 0}, {0, 8}}, {4, 8}, 2), kInvalid, "dimension 0");
  EXPECT_STATUS(ValidateBox({{3, 0}, {~uint64_t{0}, 8}}, {4, 8}, 2), kInvalid, "dimension 0");
  EXPECT_STATUS(ValidateBox({{0}, {4}}, {4, 8}, 2), kInvalid, "2 dimensions");
  EXPECT_STATUS(ValidateBox({{0, 0}, {4}}, {4, 8}, 2), kInvalid, "1 extents");
}

TEST(ValidateBox, RefusesTensorsWhoseSizeOverflows) {
  const uint64_t big = uint64_t{1} << 32;
  EXPECT_STATUS(ValidateBox({{0, 0}, {1, 1}}, {big, big}, 1), kInvalid, "2^63");
  EXPECT_STATUS(ValidateBox({{0}, {1}}, {uint64_t{1} << 62}, 2), kInvalid, "2^63");
  EXPECT_STATUS(ValidateBox({{0}, {1}}, {uint64_t{1} << 63}, 1), kInvalid, "2^63");
  EXPECT_OK(ValidateBox({{0}, {1}}, {(uint64_t{1} << 62) - 1}, 2));
  // Without an element there is nothing to overflow.
  EXPECT_OK(ValidateBox({{0, 0, 0}, {big, big, 0}}, {big, big, 0}, 16));
  const std::vector<uint64_t> ones(kMaxDimensions + 1, 1);
  EXPECT_STATUS(ValidateBox(WholeBox(ones), ones, 1), kInvalid, "65 dimensions");
}

TEST(Intersect, OfDisjointBoxesIsNothing) {
  EXPECT_EQ(Intersect({{0, 0}, {2, 4}}, {{1, 3}, {5, 5}}), (Box{{1, 3}, {1, 1}}));
  EXPECT_FALSE(Intersect({{0}, {2}}, {{2}, {2}}).has_value());
  EXPECT_FALSE(Intersect({{0}, {4}}, {{2}, {0}}).has_value());
}

// Each element is in the difference exactly once if it is in `from` and not in `what`.
TEST(Subtract, AgreesWithElementwiseDifference) {
  std::mt19937_64 random(testing::TestSeed());
  for (int round = 0; round < 2000; ++round) {
    const auto shape = RandomShape(&random, random() % 5, 6);
    const Box from = RandomBox(&random, shape);
    const Box what = RandomBox(&random, shape);
    const std::vector<Box> rest = Subtract(from, what);
    EXPECT_LE(rest.size(), std::max<size_t>(1, 2 * shape.size()));
    for (const Box& box : rest) EXPECT_FALSE(box.empty());
    ForEachIndex(WholeBox(shape), [&](const std::vector<uint64_t>& index) {
      int times = 0;
      for (const Box& box : rest) times += Holds(box, index);
      EXPECT_EQ(times, Holds(from, index) && !Holds(what, index))
          << from.ToString() << " - " << what.ToString();
    });
  }
}

TEST(ForEachRun, WholeRowsAreOneRun) {
  const Box tensor = WholeBox({8, 4, 4});
  const Box half = {{4, 0, 0}, {4, 4, 4}};
  EXPECT_EQ(RunsOf(tensor, half, half, 2), (std::vector<ByteRun>{{128, 0, 128}}));
  const Box row = {{1, 2, 0}, {1, 1, 4}};
  EXPECT_EQ(RunsOf(tensor, row, row, 2), (std::vector<ByteRun>{{48, 0, 8}}));
}

TEST(ForEachRun, DimensionsOfOneElementDoNotBreakARun) {
  const Box source = {{0, 5, 0}, {4, 1, 8}};
  const Box target = {{0, 5, 0}, {4, 1, 8}};
  EXPECT_EQ(RunsOf(source, target, source, 1), (std::vector<ByteRun>{{0, 0, 32}}));
}

TEST(ForEachRun, ColumnsAreARunARow) {
  const Box source = WholeBox({3, 4});
  const Box target = {{0, 2}, {3, 2}};
  EXPECT_EQ(RunsOf(source, target, target, 4), (std::vector<ByteRun>{{8, 0, 8}, {24, 8, 8}, {40, 16, 8}}));
}

TEST(ForEachRun, AnEmptyPartHasNoRuns) {
  const Box tensor = WholeBox({3, 4});
  EXPECT_TRUE(RunsOf(tensor, tensor, {{1, 1}, {0, 3}}, 4).empty());
}

TEST(ForEachRunDeathTest, APartOutsideIsAProgrammersError) {
  EXPECT_DEATH(RunsOf({{0}, {4}}, {{0}, {8}}, {{0}, {5}}, 1), "check failed");
}

// Against a loop over elements: the same bytes move, in ascending order, and no two runs could have been one.
TEST(ForEachRun, AgreesWithElementwiseCopy) {
  std::mt19937_64 random(testing::TestSeed());
  for (int round = 0; round < 2000; ++round) {
    const auto shape = RandomShape(&random, random() % 6, 5);
    const Box source = RandomBox(&random, shape);
    const Box target = RandomBox(&random, shape);
    const std::optional<Box> part = Intersect(source, target);
    if (!part.has_value()) continue;
    const uint64_t element_bytes = uint64_t{1} << random() % 5;
    std::vector<int64_t> expected(target.elements(), -1);
    ForEachIndex(*part, [&](const std::vector<uint64_t>& index) {
      expected[PositionIn(target, index)] = static_cast<int64_t>(PositionIn(source, index));
    });
    std::vector<int64_t> copied(target.elements(), -1);
    const std::vector<ByteRun> runs = RunsOf(source, target, *part, element_bytes);
    for (size_t r = 0; r < runs.size(); ++r) {
      ASSERT_EQ(runs[r].bytes % element_bytes, 0u);
      for (uint64_t i = 0; i < runs[r].bytes / element_bytes; ++i) {
        copied[runs[r].target_offset / element_bytes + i] =
            static_cast<int64_t>(runs[r].source_offset / element_bytes + i);
      }
      if (r == 0) continue;
      const uint64_t source_end = runs[r - 1].source_offset + runs[r - 1].bytes;
      const uint64_t target_end = runs[r - 1].target_offset + runs[r - 1].bytes;
      EXPECT_LE(source_end, runs[r].source_offset);
      EXPECT_LE(target_end, runs[r].target_offset);
      EXPECT_FALSE(source_end == runs[r].source_offset && target_end == runs[r].target_offset)
          << "two runs in one";
    }
    EXPECT_EQ(copied, expected) << source.ToString() << " to " << target.ToString();
  }
}

}  // namespace
}  // namespace esker
