#include "esker/state.h"

#include <string>

#include "client/state_types.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(State, ElementSizesAndNamesAreThoseOfTheFormat) {
  for (int number = 1; number < kDTypeCount; ++number) {
    const auto type = static_cast<ElementType>(number);
    const auto dtype = static_cast<DType>(number);
    EXPECT_EQ(ElementSize(type), ElementBytes(dtype));
    EXPECT_EQ(ElementTypeName(type), DTypeName(dtype));
    EXPECT_EQ(ToDType(type), dtype);
    EXPECT_EQ(ToElementType(dtype), type);
  }
  EXPECT_EQ(ElementSize(ElementType::kBF16), 2u);
  EXPECT_EQ(ElementTypeName(ElementType::kF8E4M3), "F8_E4M3");
  EXPECT_EQ(ElementSize(static_cast<ElementType>(0)), 0u);
  EXPECT_EQ(ElementTypeName(static_cast<ElementType>(99)), "unknown");
  EXPECT_EQ(ToDType(static_cast<ElementType>(0)), std::nullopt);
  EXPECT_EQ(ToDType(static_cast<ElementType>(200)), std::nullopt);
}

TEST(State, WholeTensorIsItsOwnBox) {
  const TensorBox box = WholeTensor("w", ElementType::kF32, {3, 5});
  EXPECT_EQ(box.offset, (std::vector<uint64_t>{0, 0}));
  EXPECT_EQ(box.extent, box.shape);
  EXPECT_EQ(box.bytes(), 60u);
  EXPECT_EQ(WholeTensor("s", ElementType::kF64, {}).bytes(), 8u);
  EXPECT_EQ(WholeTensor("e", ElementType::kF64, {4, 0}).bytes(), 0u);
}

TEST(State, CheckTensorBoxSaysWhatIsWrong) {
  EXPECT_OK(CheckTensorBox(WholeTensor("w/../x", ElementType::kU8, {1})));
  EXPECT_STATUS(CheckTensorBox(WholeTensor("", ElementType::kU8, {1})), absl::StatusCode::kInvalidArgument,
                "name");
  EXPECT_STATUS(CheckTensorBox(WholeTensor("w", static_cast<ElementType>(99), {1})),
                absl::StatusCode::kInvalidArgument, "element type is 99");
  TensorBox box = WholeTensor("w", ElementType::kU8, {4});
  box.offset = {2};
  box.extent = {3};
  EXPECT_STATUS(CheckTensorBox(box), absl::StatusCode::kInvalidArgument, "tensor \"w\"");
  box.offset = {};
  EXPECT_STATUS(CheckTensorBox(box), absl::StatusCode::kInvalidArgument, "dimensions");
  EXPECT_STATUS(CheckTensorBox(WholeTensor("w", ElementType::kF64, {uint64_t{1} << 62})),
                absl::StatusCode::kInvalidArgument, "2^63");
}

}  // namespace
}  // namespace esker::testing
