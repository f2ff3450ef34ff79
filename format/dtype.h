// Element types of tensors. The numbers are stored: never change or reuse one.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace esker {

enum class DType : uint8_t {
  kBytes = 0,  // opaque: byte items
  kBool = 1,
  kU8 = 2,
  kI8 = 3,
  kU16 = 4,
  kI16 = 5,
  kU32 = 6,
  kI32 = 7,
  kU64 = 8,
  kI64 = 9,
  kF16 = 10,
  kBF16 = 11,
  kF32 = 12,
  kF64 = 13,
  kF8E4M3 = 14,  // OCP fp8, as torch.float8_e4m3fn
  kF8E5M2 = 15,
  kF8E4M3FNUZ = 16,
  kF8E5M2FNUZ = 17,
  kF8E8M0 = 18,
  kC64 = 19,
  kC128 = 20,
};
inline constexpr int kDTypeCount = 21;

// Bytes of one element.
uint64_t ElementBytes(DType dtype);
// The number's dtype, or nothing if this version knows none.
std::optional<DType> DTypeFromNumber(uint64_t number);
// Names as in safetensors ("BF16", "F8_E4M3", "BOOL" …); "BYTES" for kBytes.
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

}  // namespace esker
