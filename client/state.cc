#include "esker/state.h"

#include "client/state_types.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

// Both enums are the numbers that checkpoints store.
#define ESKER_SAME_NUMBER(name) \
  static_assert(static_cast<int>(ElementType::name) == static_cast<int>(DType::name))
ESKER_SAME_NUMBER(kBool);
ESKER_SAME_NUMBER(kU8);
ESKER_SAME_NUMBER(kI8);
ESKER_SAME_NUMBER(kU16);
ESKER_SAME_NUMBER(kI16);
ESKER_SAME_NUMBER(kU32);
ESKER_SAME_NUMBER(kI32);
ESKER_SAME_NUMBER(kU64);
ESKER_SAME_NUMBER(kI64);
ESKER_SAME_NUMBER(kF16);
ESKER_SAME_NUMBER(kBF16);
ESKER_SAME_NUMBER(kF32);
ESKER_SAME_NUMBER(kF64);
ESKER_SAME_NUMBER(kF8E4M3);
ESKER_SAME_NUMBER(kF8E5M2);
ESKER_SAME_NUMBER(kF8E4M3FNUZ);
ESKER_SAME_NUMBER(kF8E5M2FNUZ);
ESKER_SAME_NUMBER(kF8E8M0);
ESKER_SAME_NUMBER(kC64);
ESKER_SAME_NUMBER(kC128);
#undef ESKER_SAME_NUMBER
static_assert(kDTypeCount == 1 + static_cast<int>(ElementType::kC128), "a dtype has no ElementType");

}  // namespace

uint64_t ElementSize(ElementType type) {
  const std::optional<DType> dtype = ToDType(type);
  return dtype.has_value() ? ElementBytes(*dtype) : 0;
}

std::string_view ElementTypeName(ElementType type) {
  const std::optional<DType> dtype = ToDType(type);
  return dtype.has_value() ? DTypeName(*dtype) : "unknown";
}

uint64_t TensorBox::bytes() const {
  uint64_t bytes = ElementSize(type);
  for (const uint64_t e : extent) bytes *= e;
  return bytes;
}

TensorBox WholeTensor(std::string name, ElementType type, std::vector<uint64_t> shape) {
  TensorBox box;
  box.name = std::move(name);
  box.type = type;
  box.offset.assign(shape.size(), 0);
  box.extent = shape;
  box.shape = std::move(shape);
  return box;
}

std::optional<DType> ToDType(ElementType type) {
  const std::optional<DType> dtype = DTypeFromNumber(static_cast<uint64_t>(type));
  return dtype == DType::kBytes ? std::nullopt : dtype;
}

ElementType ToElementType(DType dtype) {
  ESKER_CHECK(dtype != DType::kBytes);
  return static_cast<ElementType>(dtype);
}

absl::StatusOr<DType> CheckTensorBox(const TensorBox& tensor) {
  ESKER_RETURN_IF_ERROR(ValidateTensorName(tensor.name));
  const std::string which = StrCat("tensor \"", Printable(tensor.name), "\"");
  const std::optional<DType> dtype = ToDType(tensor.type);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(StrCat(which, ": its element type is ", static_cast<int>(tensor.type),
                                             ", expected a value of ElementType"));
  }
  ESKER_RETURN_IF_ERROR(Annotate(ValidateBox(BoxOf(tensor), tensor.shape, ElementBytes(*dtype)), which));
  return *dtype;
}

}  // namespace esker
