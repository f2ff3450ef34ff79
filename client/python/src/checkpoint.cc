#include "checkpoint.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "restore_progress.h"
#include "status.h"
#include "tensor_box.h"

namespace py = pybind11;

namespace esker::python {
namespace {

std::vector<TensorInfo> Tensors(const BoundCheckpoint& checkpoint) {
  CheckpointReader& reader = checkpoint.get();
  return ValueOrRaise(WithoutGil([&] { return reader.Tensors(); }));
}

py::list StoredBy(const BoundCheckpoint& checkpoint, uint32_t rank) {
  CheckpointReader& reader = checkpoint.get();
  py::list tuples;
  for (const TensorBox& box : ValueOrRaise(WithoutGil([&] { return reader.StoredBy(rank); }))) {
    tuples.append(ToTuple(box));
  }
  return tuples;
}

std::vector<ItemInfo> Items(const BoundCheckpoint& checkpoint) {
  CheckpointReader& reader = checkpoint.get();
  return ValueOrRaise(WithoutGil([&] { return reader.Items(); }));
}

void Restore(const BoundCheckpoint& checkpoint, const py::sequence& boxes, uint32_t preferred_rank,
             py::object progress) {
  CheckpointReader& reader = checkpoint.get();
  RestoreProgress reports(std::move(progress));
  RestoreRequest request;
  request.tensors = ToTargetTensors(boxes);
  request.preferred_rank = preferred_rank;
  request.progress = reports.callback();
  RaiseIfError(WithoutGil([&] { return reader.Restore(request); }));
  reports.RaiseIfFailed();
}

py::bytes ReadItem(const BoundCheckpoint& checkpoint, uint32_t rank, const std::string& name) {
  CheckpointReader& reader = checkpoint.get();
  return ValueOrRaise(WithoutGil([&] { return reader.ReadItem(rank, name); }));
}

}  // namespace

void BindCheckpoint(py::module_& module) {
  py::class_<BoundCheckpoint>(module, "Checkpoint")
      .def_property_readonly("info",
                             [](const BoundCheckpoint& checkpoint) { return checkpoint.get().info(); })
      .def("tensors", Tensors)
      .def("stored_by", StoredBy, py::arg("rank"))
      .def("items", Items)
      .def("restore", Restore, py::arg("boxes"), py::arg("preferred_rank") = 0,
           py::arg("progress") = py::none())
      .def("read_item", ReadItem, py::arg("rank"), py::arg("name"));
}

}  // namespace esker::python
