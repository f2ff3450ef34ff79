// Starts the rank processes, and watches them, as torchrun does.
#pragma once

#include "options.h"

namespace esker::example {

// Forks a process per rank and waits for all. If one dies the others are ended; with max_restarts left, all
// are started again as a new incarnation, which resumes from the latest committed step. Returns the exit
// code: 0 if every rank returned 0, else that of the rank that ended first with another one, or 128 + signal.
// Call it before any other thread exists.
int Launch(const Options& options);

}  // namespace esker::example
