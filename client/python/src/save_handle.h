// A save under way, for Python.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "esker/checkpointer.h"
#include "native_object.h"

namespace esker::python {

// A SaveHandle that knows which process may ask it. Copyable. Its methods need the GIL.
class BoundSave {
 public:
  explicit BoundSave(SaveHandle handle) : handle_(std::move(handle)) {}

  uint64_t step() const { return handle_.step(); }

  // Whether the save has ended within `timeout_ms` (nothing: for ever). Waits without the GIL, and lets
  // signal handlers run every 100 ms: what they raise, as KeyboardInterrupt, is raised from here, and the
  // save goes on.
  bool AwaitEnd(std::optional<uint64_t> timeout_ms) const;

  // The others raise EskerError (FAILED_PRECONDITION) in a forked child.
  const SaveHandle& get() const {
    home_.Require("SaveHandle");
    return handle_;
  }

 private:
  HomeProcess home_;
  SaveHandle handle_;
};

}  // namespace esker::python
