// Durations as people write them in flags and configuration files: "500ms", "30s", "5m", "12h", "7d", "2w".
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace esker {

// A whole number and a unit (ms, s, m, h, d, w) without space; "0" needs no unit. kInvalidArgument shows the
// text and the rule, also for what does not fit into 64 bits of milliseconds.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view text);

// The same form, exact, with the largest unit that divides it: ParseDuration returns the same duration again.
// Negative ones, which ParseDuration refuses, begin with "-".
std::string FormatDuration(std::chrono::milliseconds duration);

}  // namespace esker
