#include "save_handle.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "bindings.h"
#include "choices.h"
#include "format/base/text.h"
#include "seconds.h"
#include "status.h"

namespace py = pybind11;

namespace esker::python {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kSlice{100};

const char* PhaseName(SaveProgress::Phase phase) {
  switch (phase) {
    case SaveProgress::Phase::kUploading:
      return "uploading";
    case SaveProgress::Phase::kSealed:
      return "sealed";
    case SaveProgress::Phase::kCommitted:
      return "committed";
    case SaveProgress::Phase::kFailed:
      return "failed";
  }
  return "unknown";
}

void Wait(const BoundSave& save, std::optional<double> timeout) {
  std::optional<uint64_t> timeout_ms;
  if (timeout.has_value()) timeout_ms = ToMilliseconds(*timeout, "timeout");
  if (!save.AwaitEnd(timeout_ms)) {
    const std::string message =
        StrCat("the save of step ", save.step(), " is still under way after ", *timeout, " s");
    PyErr_SetString(PyExc_TimeoutError, message.c_str());
    throw py::error_already_set();
  }
  RaiseIfError(save.get().Result());
}

py::object ExceptionOf(const BoundSave& save) {
  if (!save.get().Done()) return py::none();
  const absl::Status result = save.get().Result();
  return result.ok() ? py::none() : MakeError(result);
}

std::string Repr(const SaveProgress& progress) {
  return StrCat("<SaveProgress ", PhaseName(progress.phase), ": ", progress.processed_bytes, " of ",
                progress.raw_bytes, " bytes, ", progress.sent_bytes, " sent, ", progress.deduplicated_bytes,
                " known before>");
}

}  // namespace

bool BoundSave::AwaitEnd(std::optional<uint64_t> timeout_ms) const {
  const SaveHandle& handle = get();
  const Clock::time_point begin = Clock::now();
  while (!handle.Done()) {
    milliseconds slice = kSlice;
    if (timeout_ms.has_value()) {
      const auto passed = std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
      const milliseconds left = milliseconds(*timeout_ms) - passed;
      if (left <= milliseconds(0)) return false;
      slice = std::min(slice, left);
    }
    // Whether it ended is asked above: a save's own error may be kDeadlineExceeded too.
    WithoutGil([&] { static_cast<void>(handle.WaitFor(static_cast<uint64_t>(slice.count()))); });
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  return true;
}

void BindSaveHandle(py::module_& module) {
  py::class_<SaveProgress>(module, "SaveProgress")
      .def_property_readonly("phase", [](const SaveProgress& progress) { return PhaseName(progress.phase); })
      .def_readonly("raw_bytes", &SaveProgress::raw_bytes)
      .def_readonly("processed_bytes", &SaveProgress::processed_bytes)
      .def_readonly("sent_bytes", &SaveProgress::sent_bytes)
      .def_readonly("deduplicated_bytes", &SaveProgress::deduplicated_bytes)
      .def_readonly("unchanged_bytes", &SaveProgress::unchanged_bytes)
      .def_property_readonly("transport",
                             [](const SaveProgress& progress) { return TransportName(progress.transport); })
      .def("__repr__", [](const SaveProgress& progress) { return Repr(progress); });

  py::class_<BoundSave>(module, "SaveHandle")
      .def_property_readonly("step", &BoundSave::step)
      .def("wait", Wait, py::arg("timeout") = py::none())
      .def("done", [](const BoundSave& save) { return save.get().Done(); })
      .def("exception", ExceptionOf)
      .def("progress", [](const BoundSave& save) { return save.get().Progress(); });
}

}  // namespace esker::python
