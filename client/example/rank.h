// What one rank process does: resume, train, save.
#pragma once

#include <cstdint>
#include <string>

#include "exchange.h"
#include "options.h"

namespace esker::example {

inline constexpr int kLastSaveFailedExitCode = 3;

// Returns the process's exit code: 0; 1 if it could not begin (says why on stderr); kLastSaveFailedExitCode
// if it trained to the end but its last checkpoint was not committed. `incarnation` is the same on all ranks
// of one start, and new at the next.
int RunRank(const Options& options, uint32_t rank, const std::string& incarnation, Exchange* exchange);

// Where the ranks write the final state, each its own rows; the launcher renames it when all are done.
std::string UnfinishedFinalState(const Options& options);

}  // namespace esker::example
