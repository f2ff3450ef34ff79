// Durations as Python gives them: seconds, as floats.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "format/base/text.h"
#include "pybind11/pybind11.h"

namespace esker::python {

// A year: longer is no timeout, and might not fit into a clock's units.
inline constexpr double kMaxSeconds = 366.0 * 24 * 3600;

// In milliseconds, rounded up. ValueError, which names `what`, for a number below 0 or none.
inline uint64_t ToMilliseconds(double seconds, const char* what) {
  if (!(seconds >= 0)) {
    throw pybind11::value_error(
        StrCat(what, ": expected seconds, 0 or more, found ", std::to_string(seconds)));
  }
  return static_cast<uint64_t>(std::ceil(std::fmin(seconds, kMaxSeconds) * 1000));
}

}  // namespace esker::python
