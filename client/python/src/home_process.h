// fork() and libesker: the child has the memory but none of the threads, and maybe locks that nobody will
// ever release. What it called might hang for ever, so it is refused instead.
#pragma once

#include <sys/types.h>
#include <unistd.h>

namespace esker::python {

// The process that made something. With the GIL.
class HomeProcess {
 public:
  bool Left() const { return ::getpid() != pid_; }

  // Raises EskerError (FAILED_PRECONDITION) in another process. `what`: "Checkpointer".
  void Require(const char* what) const;

 private:
  const pid_t pid_ = ::getpid();
};

// Before the first connection of an object: raises EskerError (FAILED_PRECONDITION) if this process was
// forked from one that had come here, because gRPC can't begin anew in the child. With the GIL.
void RequireHomeOfLibrary();

}  // namespace esker::python
