// A Python function that is told how far a restore is, from libesker's threads.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "esker/reader.h"

namespace esker::python {

// Made and destroyed with the GIL; must outlive the restore.
class RestoreProgress {
 public:
  // `function`: called with (done_bytes, total_bytes), or None.
  explicit RestoreProgress(pybind11::object function) : function_(std::move(function)) {}

  // What libesker calls, from any thread, without the GIL.
  ProgressCallback callback() {
    if (function_.is_none()) return nullptr;
    return [this](uint64_t done_bytes, uint64_t total_bytes) { Report(done_bytes, total_bytes); };
  }

  // Raises what the function raised: it was not called again after that.
  void RaiseIfFailed() {
    if (error_.has_value()) throw std::move(*error_);
  }

 private:
  void Report(uint64_t done_bytes, uint64_t total_bytes) {
    const pybind11::gil_scoped_acquire acquire;
    if (error_.has_value()) return;
    try {
      function_(done_bytes, total_bytes);
    } catch (pybind11::error_already_set& error) {
      error_.emplace(error);
    }
  }

  const pybind11::object function_;
  std::optional<pybind11::error_already_set> error_;  // guarded by the GIL
};

}  // namespace esker::python
