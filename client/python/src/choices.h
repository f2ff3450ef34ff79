// Options that Python names by strings.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "esker/reader.h"
#include "format/base/text.h"

namespace esker::python {

template <typename Value>
using Choices = std::vector<std::pair<std::string, Value>>;

// The value that `text` names. ValueError if it is none of the names.
template <typename Value>
Value Choose(const char* what, const std::string& text, const Choices<Value>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += StrCat(names.empty() ? "" : ", ", "\"", name, "\"");
  }
  throw pybind11::value_error(StrCat(what, ": expected one of ", names, ", found \"", text, "\""));
}

inline const Choices<Transport>& Transports() {
  static const Choices<Transport> names = {
      {"auto", Transport::kAuto}, {"shm", Transport::kSharedMemory}, {"grpc", Transport::kGrpc}};
  return names;
}

inline Transport ToTransport(const std::string& text) { return Choose("transport", text, Transports()); }

inline std::string TransportName(Transport transport) {
  for (const auto& [name, value] : Transports()) {
    if (value == transport) return name;
  }
  return "unknown";
}

}  // namespace esker::python
