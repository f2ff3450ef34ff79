#include "format/dtype.h"

#include <gtest/gtest.h>

#include <set>

namespace esker {
namespace {

TEST(DType, EveryNumberHasItsOwnNameAndGoesBack) {
  std::set<std::string_view> names;
  for (int number = 0; number < kDTypeCount; ++number) {
    const std::optional<DType> dtype = DTypeFromNumber(number);
    ASSERT_TRUE(dtype.has_value()) << number;
    EXPECT_EQ(static_cast<int>(*dtype), number);
    EXPECT_TRUE(names.insert(DTypeName(*dtype)).second) << DTypeName(*dtype);
    EXPECT_EQ(DTypeFromName(DTypeName(*dtype)), dtype);
  }
}

TEST(DType, UnknownNumbersAndNamesAreNothing) {
  EXPECT_FALSE(DTypeFromNumber(kDTypeCount).has_value());
  EXPECT_FALSE(DTypeFromNumber(~uint64_t{0}).has_value());
  EXPECT_FALSE(DTypeFromName("bf16").has_value());
  EXPECT_FALSE(DTypeFromName("").has_value());
}

// Stored for ever: a change here breaks every checkpoint.
TEST(DType, NumbersAndSizesNeverChange) {
  EXPECT_EQ(ElementBytes(DType::kBytes), 1u);
  EXPECT_EQ(ElementBytes(DTypeFromNumber(1).value()), 1u);
  EXPECT_EQ(ElementBytes(DTypeFromNumber(10).value()), 2u);
  EXPECT_EQ(DTypeName(DTypeFromNumber(11).value()), "BF16");
  EXPECT_EQ(ElementBytes(DTypeFromNumber(11).value()), 2u);
  EXPECT_EQ(DTypeName(DTypeFromNumber(12).value()), "F32");
  EXPECT_EQ(ElementBytes(DTypeFromNumber(12).value()), 4u);
  EXPECT_EQ(ElementBytes(DTypeFromNumber(13).value()), 8u);
  EXPECT_EQ(DTypeName(DTypeFromNumber(14).value()), "F8_E4M3");
  EXPECT_EQ(ElementBytes(DTypeFromNumber(14).value()), 1u);
  EXPECT_EQ(DTypeName(DTypeFromNumber(20).value()), "C128");
  EXPECT_EQ(ElementBytes(DTypeFromNumber(20).value()), 16u);
}

}  // namespace
}  // namespace esker
