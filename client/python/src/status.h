// absl::Status as Python exceptions. All of it needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace esker::python {

// An EskerError with the status's message and code. The status must not be OK.
pybind11::object MakeError(const absl::Status& status);

// Raises MakeError(status), unless the status is OK.
void RaiseIfError(const absl::Status& status);

template <typename T>
T ValueOrRaise(absl::StatusOr<T> result) {
  RaiseIfError(result.status());
  return std::move(result).value();
}

}  // namespace esker::python
