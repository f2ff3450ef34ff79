#include "format/dtype.h"

#include <array>

#include "format/base/status.h"

namespace esker {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  uint64_t element_bytes;
};

constexpr std::array<Row, kDTypeCount> kRows = {{
    {DType::kBytes, "BYTES", 1},
    {DType::kBool, "BOOL", 1},
    {DType::kU8, "U8", 1},
    {DType::kI8, "I8", 1},
    {DType::kU16, "U16", 2},
    {DType::kI16, "I16", 2},
    {DType::kU32, "U32", 4},
    {DType::kI32, "I32", 4},
    {DType::kU64, "U64", 8},
    {DType::kI64, "I64", 8},
    {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},
    {DType::kF32, "F32", 4},
    {DType::kF64, "F64", 8},
    {DType::kF8E4M3, "F8_E4M3", 1},
    {DType::kF8E5M2, "F8_E5M2", 1},
    {DType::kF8E4M3FNUZ, "F8_E4M3FNUZ", 1},
    {DType::kF8E5M2FNUZ, "F8_E5M2FNUZ", 1},
    {DType::kF8E8M0, "F8_E8M0", 1},
    {DType::kC64, "C64", 8},
    {DType::kC128, "C128", 16},
}};

constexpr bool RowsStandAtTheirNumbers() {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (static_cast<size_t>(kRows[i].dtype) != i || kRows[i].element_bytes == 0) return false;
  }
  return true;
}
static_assert(RowsStandAtTheirNumbers());

const Row& RowOf(DType dtype) {
  const auto number = static_cast<size_t>(dtype);
  ESKER_CHECK(number < kRows.size());
  return kRows[number];
}

}  // namespace

uint64_t ElementBytes(DType dtype) { return RowOf(dtype).element_bytes; }

std::optional<DType> DTypeFromNumber(uint64_t number) {
  if (number >= kRows.size()) return std::nullopt;
  return kRows[number].dtype;
}

std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace esker
