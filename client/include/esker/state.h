// The state that is saved and restored: named tensors, of which each rank holds a box, and named opaque byte
// items.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace esker {

// The numbers are stored in checkpoints (docs/format.md). kF8* are the OCP fp8 formats, as torch.float8_*.
enum class ElementType : uint8_t {
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
  kF8E4M3 = 14,
  kF8E5M2 = 15,
  kF8E4M3FNUZ = 16,
  kF8E5M2FNUZ = 17,
  kF8E8M0 = 18,
  kC64 = 19,
  kC128 = 20,
};

// Bytes of one element; 0 if `type` is no value of the enum.
uint64_t ElementSize(ElementType type);
// The names that safetensors uses: "BF16", "F8_E4M3", "BOOL" …
std::string_view ElementTypeName(ElementType type);

// A rank's box of a global tensor: the elements x with offset[d] <= x[d] < offset[d] + extent[d]. All three
// are empty for a scalar. `name` is 1 to 4096 bytes of UTF-8 without NUL.
struct TensorBox {
  std::string name;
  ElementType type = ElementType::kF32;
  std::vector<uint64_t> shape;   // the global tensor's
  std::vector<uint64_t> offset;  // where the box begins
  std::vector<uint64_t> extent;

  uint64_t bytes() const;
};

// A tensor that is saved whole by this rank.
TensorBox WholeTensor(std::string name, ElementType type, std::vector<uint64_t> shape);

// A tensor to save. `data`: the box's elements, row-major, contiguous; read only while Save runs.
struct SourceTensor {
  TensorBox box;
  const void* data = nullptr;
};

// Opaque bytes to save: random-generator state, the data loader's position. Each rank has its own; the length
// may change from step to step.
struct SourceItem {
  std::string name;
  std::string_view bytes;  // read only while Save runs
};

struct State {
  std::vector<SourceTensor> tensors;
  std::vector<SourceItem> items;
};

// A tensor to restore. `data`: room for the box's elements, row-major. Any box of the tensor may be wanted,
// whatever boxes were saved.
struct TargetTensor {
  TensorBox box;
  void* data = nullptr;
};

}  // namespace esker
