#include "home_process.h"

#include "absl/status/status.h"
#include "format/base/text.h"
#include "status.h"

namespace esker::python {

void HomeProcess::Require(const char* what) const {
  if (!Left()) return;
  RaiseIfError(absl::FailedPreconditionError(StrCat(
      "this process (", ::getpid(), ") was forked from the one that made this ", what, " (", pid_,
      "), and can't use it: start processes with the \"spawn\" method, and open what they need in them")));
}

void RequireHomeOfLibrary() {
  static const HomeProcess first;  // guarded by the GIL
  first.Require("process's first Checkpointer or Reader");
}

}  // namespace esker::python
