// What each source file adds to the module. The order in module.cc is that of dependence: a class is bound
// before functions that return it.
#pragma once

#include <pybind11/pybind11.h>

namespace esker::python {

void BindError(pybind11::module_& module);         // EskerError
void BindTensorBox(pybind11::module_& module);     // TensorBox, the type of the tuples
void BindInfos(pybind11::module_& module);         // CheckpointInfo, TensorInfo, ItemInfo
void BindSaveHandle(pybind11::module_& module);    // SaveHandle, SaveProgress
void BindCheckpoint(pybind11::module_& module);    // Checkpoint
void BindReader(pybind11::module_& module);        // Reader
void BindCheckpointer(pybind11::module_& module);  // Checkpointer

}  // namespace esker::python
