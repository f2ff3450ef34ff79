// Which start of the job this is: the token that makes a new attempt.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace esker {

// `given`, unless it is empty; else from the environment, as CheckpointerOptions::incarnation says.
// TORCHELASTIC_RUN_ID "none" counts as not set: torchrun sets it on every start of every job that was given
// no id. kInvalidArgument names the variable and the rule. `getenv` is ::getenv, but for tests.
absl::StatusOr<std::string> ChooseIncarnation(const std::string& given, uint32_t world_size,
                                              const std::function<const char*(const char*)>& getenv);

}  // namespace esker
