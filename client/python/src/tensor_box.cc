#include "tensor_box.h"

#include <pybind11/eval.h>
#include <pybind11/stl.h>

#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "bindings.h"
#include "format/base/text.h"
#include "format/names.h"
#include "status.h"

namespace py = pybind11;

namespace esker::python {
namespace {

constexpr int kLastElementType = static_cast<int>(ElementType::kC128);
constexpr size_t kTupleSize = 6;

struct BoxAt {
  TensorBox box;
  uintptr_t address = 0;
};

const std::unordered_map<std::string, ElementType>& TypesByName() {
  static const auto* const types = [] {
    auto* map = new std::unordered_map<std::string, ElementType>;
    for (int number = 1; number <= kLastElementType; ++number) {
      const auto type = static_cast<ElementType>(number);
      map->emplace(ElementTypeName(type), type);
    }
    return map;
  }();
  return *types;
}

ElementType ToElementType(const std::string& tensor, const std::string& dtype) {
  const auto found = TypesByName().find(dtype);
  if (found == TypesByName().end()) {
    RaiseIfError(absl::InvalidArgumentError(
        StrCat("tensor \"", Printable(tensor), "\": unknown dtype \"", Printable(dtype),
               "\": expected a name that safetensors uses, as \"BF16\", \"F32\", \"I64\" or \"BOOL\"")));
  }
  return found->second;
}

// One field of a box, or TypeError that says which.
template <typename T>
T Field(const py::tuple& tuple, size_t field, const std::string& tensor, const char* expected) {
  try {
    return py::cast<T>(tuple[field]);
  } catch (const py::cast_error&) {
    throw py::type_error(
        StrCat("tensor ", tensor, ": expected ", expected, ", found ", std::string(py::repr(tuple[field]))));
  }
}

BoxAt ToBox(const py::handle& item, size_t index) {
  const std::string position = StrCat("number ", index);
  if (!py::isinstance<py::tuple>(item) || py::len(item) != kTupleSize) {
    throw py::type_error(StrCat("tensor ", position,
                                ": expected a tuple (name, dtype, shape, offset, extent, address), found ",
                                std::string(py::repr(item))));
  }
  const auto tuple = py::reinterpret_borrow<py::tuple>(item);
  BoxAt result;
  result.box.name = Field<std::string>(tuple, 0, position, "a name (str)");
  const std::string& name = result.box.name;
  result.box.type = ToElementType(name, Field<std::string>(tuple, 1, name, "a dtype (str)"));
  using Sizes = std::vector<uint64_t>;
  result.box.shape = Field<Sizes>(tuple, 2, name, "a shape (a tuple of ints, none below 0)");
  result.box.offset = Field<Sizes>(tuple, 3, name, "an offset (a tuple of ints, none below 0)");
  result.box.extent = Field<Sizes>(tuple, 4, name, "an extent (a tuple of ints, none below 0)");
  result.address = Field<uintptr_t>(tuple, 5, name, "an address (int)");
  return result;
}

template <typename Tensor>
std::vector<Tensor> ToTensors(const py::sequence& boxes) {
  std::vector<Tensor> tensors;
  tensors.reserve(py::len(boxes));
  for (const py::handle item : boxes) {
    BoxAt at = ToBox(item, tensors.size());
    // NOLINTNEXTLINE(performance-no-int-to-ptr): Python knows addresses as numbers
    tensors.push_back({std::move(at.box), reinterpret_cast<void*>(at.address)});
  }
  return tensors;
}

}  // namespace

void BindTensorBox(py::module_& module) {
  module.attr("TensorBox") =
      py::eval("tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]");
}

std::vector<SourceTensor> ToSourceTensors(const py::sequence& boxes) {
  return ToTensors<SourceTensor>(boxes);
}

std::vector<TargetTensor> ToTargetTensors(const py::sequence& boxes) {
  return ToTensors<TargetTensor>(boxes);
}

py::tuple ToTuple(const std::vector<uint64_t>& numbers) {
  py::tuple tuple(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) tuple[i] = numbers[i];
  return tuple;
}

py::tuple ToTuple(const TensorBox& box) {
  return py::make_tuple(box.name, ElementTypeName(box.type), ToTuple(box.shape), ToTuple(box.offset),
                        ToTuple(box.extent), 0);
}

}  // namespace esker::python
