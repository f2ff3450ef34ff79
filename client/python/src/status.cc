#include "status.h"

#include <pybind11/eval.h>

#include "bindings.h"
#include "format/base/text.h"

namespace py = pybind11;

namespace esker::python {
namespace {

// In Python, because that makes a class with a constructor, which can be pickled, raised and subclassed
// there.
constexpr char kErrorClass[] = R"(
class EskerError(Exception):
    """What Esker could not do: what was expected, what was found, where, and what to do.

    code: the kind of error, by its canonical name ("NOT_FOUND", "UNAVAILABLE", "DATA_LOSS" ...).
    """

    def __init__(self, message="", code="UNKNOWN"):
        super().__init__(message)
        self.code = code
)";

// Lives as long as the process: exceptions are raised from anywhere.
PyObject* error_class = nullptr;

}  // namespace

void BindError(py::module_& module) {
  py::dict scope;
  scope["__name__"] = "esker";  // what tracebacks and pickles call it: esker.EskerError
  py::exec(kErrorClass, scope);
  module.attr("EskerError") = scope["EskerError"];
  error_class = py::object(scope["EskerError"]).release().ptr();
}

py::object MakeError(const absl::Status& status) {
  // Names of files and tensors in it may be any bytes.
  const std::string_view message = MessageOf(status);
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
  if (!text) throw py::error_already_set();
  return py::handle(error_class)(text, absl::StatusCodeToString(status.code()));
}

void RaiseIfError(const absl::Status& status) {
  if (status.ok()) return;
  PyErr_SetObject(error_class, MakeError(status).ptr());
  throw py::error_already_set();
}

}  // namespace esker::python
