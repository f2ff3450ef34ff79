// What a listing is made of: plain records, read-only.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"
#include "esker/reader.h"
#include "format/base/text.h"
#include "tensor_box.h"

namespace py = pybind11;

namespace esker::python {
namespace {

std::string Repr(const CheckpointInfo& info) {
  return StrCat("<CheckpointInfo ", info.run, "@", info.step, ": attempt ", info.attempt, ", world size ",
                info.world_size, ", ", info.raw_bytes, " bytes", info.pinned ? ", pinned" : "", ">");
}

std::string Repr(const TensorInfo& info) {
  return StrCat("<TensorInfo ", info.name, ": ", ElementTypeName(info.type), " of shape ",
                std::string(py::repr(ToTuple(info.shape))), ", ", info.shards, " shards>");
}

std::string Repr(const ItemInfo& info) {
  return StrCat("<ItemInfo ", info.name, " of rank ", info.rank, ": ", info.bytes, " bytes>");
}

}  // namespace

void BindInfos(py::module_& module) {
  py::class_<CheckpointInfo>(module, "CheckpointInfo")
      .def_readonly("run", &CheckpointInfo::run)
      .def_readonly("step", &CheckpointInfo::step)
      .def_readonly("attempt", &CheckpointInfo::attempt)
      .def_readonly("world_size", &CheckpointInfo::world_size)
      .def_readonly("committed_unix_ms", &CheckpointInfo::committed_unix_ms)
      .def_readonly("raw_bytes", &CheckpointInfo::raw_bytes)
      .def_readonly("stored_bytes", &CheckpointInfo::stored_bytes)
      .def_readonly("new_stored_bytes", &CheckpointInfo::new_stored_bytes)
      .def_readonly("unchanged_bytes", &CheckpointInfo::unchanged_bytes)
      .def_readonly("pinned", &CheckpointInfo::pinned)
      .def("__repr__", [](const CheckpointInfo& info) { return Repr(info); });

  py::class_<TensorInfo>(module, "TensorInfo")
      .def_readonly("name", &TensorInfo::name)
      .def_property_readonly("dtype", [](const TensorInfo& info) { return ElementTypeName(info.type); })
      .def_property_readonly("shape", [](const TensorInfo& info) { return ToTuple(info.shape); })
      .def_readonly("shards", &TensorInfo::shards)
      .def("__repr__", [](const TensorInfo& info) { return Repr(info); });

  py::class_<ItemInfo>(module, "ItemInfo")
      .def_readonly("rank", &ItemInfo::rank)
      .def_readonly("name", &ItemInfo::name)
      .def_readonly("bytes", &ItemInfo::bytes)
      .def("__repr__", [](const ItemInfo& info) { return Repr(info); });
}

}  // namespace esker::python
