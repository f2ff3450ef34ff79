// How the codec `planes` stores a chunk: decided once, from a sample.
#pragma once

#include <array>
#include <optional>

#include "format/base/bytes.h"
#include "format/byte_planes.h"
#include "format/dtype.h"
#include "format/zstd_frame.h"

namespace esker {

inline constexpr size_t kMaxPlanes = 8;

// Bytes that are split apart together: those of the dtype's element, of a complex number's part, and 1 where
// `raw_bytes` are no whole elements.
size_t PlaneCount(DType dtype, uint64_t raw_bytes);

// The rotation that brings a float's exponent to its top byte: 1 bit, the sign, and 4 bits for F64, whose top
// byte then has the exponent's low 8 bits. 0 for all that has no exponent, or has it in its only byte.
int FloatRotation(DType dtype);

struct PlanePlan {
  PlaneShape shape;
  // For each plane, how its frames are made; nothing: store it raw.
  std::array<std::optional<FrameEffort>, kMaxPlanes> efforts;
};

// Tries the planes of a hundredth of `raw`, taken from all over it. A plane is worth a frame if that makes it
// 5% smaller. Nothing if all of it together would not shrink by 5%: then `raw` is best stored as it is.
// Thread-safe; keeps scratch memory for each thread.
std::optional<PlanePlan> PlanPlanes(ByteView raw, DType dtype);

}  // namespace esker
