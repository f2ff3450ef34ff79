// Boxes of tensors as Python tuples: (name, dtype, shape, offset, extent, address). All of it needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "esker/state.h"

namespace esker::python {

// Raises TypeError for what is no such tuple, and EskerError (INVALID_ARGUMENT) for an unknown dtype: both
// name the tensor.
std::vector<SourceTensor> ToSourceTensors(const pybind11::sequence& boxes);
std::vector<TargetTensor> ToTargetTensors(const pybind11::sequence& boxes);

// With address 0.
pybind11::tuple ToTuple(const TensorBox& box);

// As a tuple of ints.
pybind11::tuple ToTuple(const std::vector<uint64_t>& numbers);

}  // namespace esker::python
