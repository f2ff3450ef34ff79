// The public state types (esker/state.h) in the format's terms.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "esker/state.h"
#include "format/box.h"
#include "format/dtype.h"

namespace esker {

// The dtype of the same number. Nothing if the number is none that a tensor may have.
std::optional<DType> ToDType(ElementType type);
// The other way round; kBytes has none.
ElementType ToElementType(DType dtype);

inline Box BoxOf(const TensorBox& tensor) { return {tensor.offset, tensor.extent}; }

// The dtype of a tensor that the caller described; kInvalidArgument names it unless its name, type, shape and
// box are legal.
absl::StatusOr<DType> CheckTensorBox(const TensorBox& tensor);

}  // namespace esker
