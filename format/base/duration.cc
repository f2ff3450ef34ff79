#include "format/base/duration.h"

#include <array>
#include <charconv>
#include <cstdint>
#include <limits>

#include "format/base/text.h"

namespace esker {
namespace {

struct Unit {
  std::string_view name;
  int64_t millis;
};

// The largest first.
constexpr std::array<Unit, 6> kUnits = {{{"w", 7 * 24 * 3'600'000},
                                         {"d", 24 * 3'600'000},
                                         {"h", 3'600'000},
                                         {"m", 60'000},
                                         {"s", 1'000},
                                         {"ms", 1}}};

absl::Status Malformed(std::string_view text, std::string_view why) {
  constexpr size_t kShownBytes = 40;
  return absl::InvalidArgumentError(
      StrCat("'", text.substr(0, kShownBytes), "' is not a duration: ", why,
             "; write a whole number and a unit (ms, s, m, h, d, w), such as 500ms, 30s or 7d"));
}

}  // namespace

absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view text) {
  uint64_t count = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, count);
  if (error == std::errc::result_out_of_range) return Malformed(text, "the number is too large");
  if (error != std::errc()) return Malformed(text, "it does not begin with a digit");

  const std::string_view name(rest, static_cast<size_t>(end - rest));
  if (name.empty()) {
    if (count == 0) return std::chrono::milliseconds(0);
    return Malformed(text, "the unit is missing");
  }
  for (const Unit& unit : kUnits) {
    if (name != unit.name) continue;
    const auto limit = static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / unit.millis);
    if (count > limit) return Malformed(text, "it is too long");
    return std::chrono::milliseconds(static_cast<int64_t>(count) * unit.millis);
  }
  return Malformed(text, "the unit is unknown");
}

std::string FormatDuration(std::chrono::milliseconds duration) {
  const int64_t millis = duration.count();
  if (millis == 0) return "0s";
  for (const Unit& unit : kUnits) {
    if (millis % unit.millis == 0) return StrCat(millis / unit.millis, unit.name);
  }
  return StrCat(millis, "ms");
}

}  // namespace esker
