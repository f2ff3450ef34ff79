#include "format/plane_plan.h"

#include <gtest/gtest.h>

#include "tests/format/plane_fixture.h"
#include "tests/testing/seed.h"

namespace esker {
namespace {

constexpr size_t kBlockBytes = 64 << 10;

TEST(PlanePlan, WidthIsTheElementsOrAComplexPartsOrOne) {
  EXPECT_EQ(PlaneWidth(DType::kBF16, 10), 2u);
  EXPECT_EQ(PlaneWidth(DType::kBF16, 11), 1u);
  EXPECT_EQ(PlaneWidth(DType::kC64, 12), 4u);
  EXPECT_EQ(PlaneWidth(DType::kC128, 24), 8u);
  EXPECT_EQ(PlaneWidth(DType::kF64, 0), 8u);
  for (int number = 0; number < kDTypeCount; ++number) {
    EXPECT_LE(PlaneWidth(DTypeFromNumber(number).value(), 1 << 20), kMaxPlanes);
  }
}

TEST(PlanePlan, OfFloatsOnlyTheExponentsAreWorthATry) {
  std::mt19937_64 random(testing::TestSeed());
  const PlanePlan plan =
      PlanPlanes(GaussianBytes(DType::kF32, 3 * kBlockBytes, random), DType::kF32, kBlockBytes);
  EXPECT_TRUE(plan.is_worth_it);
  EXPECT_EQ(plan.shape, (PlaneShape{4, 1}));
  ASSERT_EQ(plan.blocks.size(), 3u);
  for (const auto& efforts : plan.blocks) {
    for (size_t k = 0; k < 3; ++k) EXPECT_EQ(efforts[k], PlaneEffort::kStore) << k;
    EXPECT_EQ(efforts[3], PlaneEffort::kHuffman);
  }
}

TEST(PlanePlan, TensorsWithoutSignsAreNotRotated) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<std::byte> bytes = GaussianBytes(DType::kBF16, kBlockBytes, random);
  EXPECT_EQ(PlanPlanes(bytes, DType::kBF16, kBlockBytes).shape.rotation, 1);
  // Signs in the last eighth are seen.
  const size_t last = bytes.size() / 8 * 7;
  for (size_t top = 1; top < last; top += 2) bytes[top] &= std::byte{0x7f};
  EXPECT_EQ(PlanPlanes(bytes, DType::kBF16, kBlockBytes).shape.rotation, 1);
  for (size_t top = last + 1; top < bytes.size(); top += 2) bytes[top] &= std::byte{0x7f};
  EXPECT_EQ(PlanPlanes(bytes, DType::kBF16, kBlockBytes).shape.rotation, 0);
}

TEST(PlanePlan, NoiseIsNotWorthIt) {
  std::mt19937_64 random(testing::TestSeed());
  for (int number = 0; number < kDTypeCount; ++number) {
    const DType dtype = DTypeFromNumber(number).value();
    EXPECT_FALSE(PlanPlanes(NoiseBytes(4 * kBlockBytes, random), dtype, kBlockBytes).is_worth_it)
        << DTypeName(dtype);
  }
}

TEST(PlanePlan, ABlockOfZerosAmongNoiseIsSeen) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<std::byte> bytes = NoiseBytes(8 * kBlockBytes, random);
  std::fill_n(bytes.begin() + 3 * kBlockBytes, kBlockBytes, std::byte{0});
  const PlanePlan plan = PlanPlanes(bytes, DType::kF32, kBlockBytes);
  EXPECT_TRUE(plan.is_worth_it);
  for (size_t block = 0; block < 8; ++block) {
    EXPECT_EQ(plan.blocks[block][0], block == 3 ? PlaneEffort::kBoth : PlaneEffort::kStore) << block;
  }
}

}  // namespace
}  // namespace esker
