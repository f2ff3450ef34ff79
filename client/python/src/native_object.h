// An object of libesker inside a Python object: destroyed without the GIL, and never touched in a forked
// child.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "format/base/text.h"
#include "status.h"

namespace esker::python {

// Runs `call` without the GIL and returns what it returns. It must not touch Python objects.
template <typename Call>
auto WithoutGil(Call call) {
  const pybind11::gil_scoped_release release;
  return call();
}

// The process that made something. After fork() the child has the memory but none of the threads, and maybe
// locks that nobody will ever release: whatever the child called might hang for ever.
class HomeProcess {
 public:
  bool Left() const { return ::getpid() != pid_; }

  // Raises EskerError (FAILED_PRECONDITION) in another process. `what`: "Checkpointer".
  void Require(const char* what) const {
    if (!Left()) return;
    RaiseIfError(absl::FailedPreconditionError(StrCat(
        "this process (", ::getpid(), ") was forked from the one that made this ", what, " (", pid_,
        "), and can't use it: start processes with the \"spawn\" method, and open what they need in them")));
  }

 private:
  const pid_t pid_ = ::getpid();
};

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
