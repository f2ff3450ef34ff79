// The exit codes of `esker`, and how an error reads on a terminal.
//
//   0  ok
//   1  failed: anything that is none of the below
//   2  usage: an option, a name or an input file is not valid
//   3  not found: no such run, step, tensor or file
//   4  damaged data: what is stored, or an input file, is not intact
//   5  server not reachable, or it did not answer in time
//   6  refused: exists already, pinned, fenced by a newer attempt, no permission, disk full
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace esker {

enum class ExitCode : int {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kNotFound = 3,
  kDamaged = 4,
  kUnreachable = 5,
  kRefused = 6,
};

ExitCode ExitCodeOf(const absl::Status& status);

// "not_found", "damaged" …: what JSON errors carry.
std::string_view ExitCodeName(ExitCode code);

// The table above, as the footer of `esker --help`.
std::string ExitCodeHelp();

// The error as one line without a line break: what happened and where, and, where the message does not say so
// itself, what to do. `server` is the address that was asked.
std::string ErrorLine(const absl::Status& status, std::string_view server);

}  // namespace esker
