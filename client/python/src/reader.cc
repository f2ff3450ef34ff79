// Reading without being a rank, for Python.
#include "esker/reader.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "checkpoint.h"
#include "choices.h"
#include "native_object.h"
#include "seconds.h"
#include "status.h"

namespace py = pybind11;

namespace esker::python {
namespace {

using BoundReader = NativeObject<Reader>;

std::unique_ptr<BoundReader> Make(const std::string& server, double connect_timeout, int threads,
                                  const std::string& transport) {
  ReaderOptions options;
  options.server = server;
  options.connect_timeout_ms = ToMilliseconds(connect_timeout, "connect_timeout");
  options.threads = threads;
  options.transport = ToTransport(transport);
  RequireHomeOfLibrary();
  return std::make_unique<BoundReader>("Reader",
                                       ValueOrRaise(WithoutGil([&] { return Reader::Open(options); })));
}

std::vector<CheckpointInfo> List(const BoundReader& bound, const std::string& run) {
  Reader& reader = bound.get();
  return ValueOrRaise(WithoutGil([&] { return reader.List(run); }));
}

std::unique_ptr<BoundCheckpoint> OpenCheckpoint(const BoundReader& bound, const std::string& run,
                                                std::optional<uint64_t> step) {
  Reader& reader = bound.get();
  return std::make_unique<BoundCheckpoint>(
      "Checkpoint", ValueOrRaise(WithoutGil([&] { return reader.OpenCheckpoint(run, step); })));
}

}  // namespace

void BindReader(py::module_& module) {
  py::class_<BoundReader>(module, "Reader")
      .def(py::init(&Make), py::arg("server"), py::kw_only(), py::arg("connect_timeout") = 20.0,
           py::arg("threads") = 0, py::arg("transport") = "auto")
      .def("list", List, py::arg("run"))
      .def("open", OpenCheckpoint, py::arg("run"), py::arg("step") = py::none(), py::keep_alive<0, 1>());
}

}  // namespace esker::python
