// An object of libesker inside a Python object: destroyed without the GIL, and never touched in a forked
// child.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "home_process.h"

namespace esker::python {

// Runs `call` without the GIL and returns what it returns. It must not touch Python objects.
template <typename Call>
auto WithoutGil(Call call) {
  const pybind11::gil_scoped_release release;
  return call();
}

template <typename T>
class NativeObject {
 public:
  NativeObject(const char* name, std::unique_ptr<T> object) : name_(name), object_(std::move(object)) {}
  // May block: a Checkpointer waits for its save.
  ~NativeObject() {
    if (home_.Left()) {
      static_cast<void>(object_.release());
    } else {
      WithoutGil([this] { object_.reset(); });
    }
  }
  NativeObject(const NativeObject&) = delete;
  NativeObject& operator=(const NativeObject&) = delete;

  // Raises EskerError (FAILED_PRECONDITION) in a forked child. With the GIL.
  T& get() const {
    home_.Require(name_);
    return *object_;
  }

 private:
  const char* const name_;
  const HomeProcess home_;
  std::unique_ptr<T> object_;
};

}  // namespace esker::python
