#include "tools/output.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

// Columns on a terminal, near enough: code points.
size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(),
                                           [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

void AppendCell(const std::string& cell, size_t width, Align align, std::string* line) {
  const std::string padding(width - DisplayWidth(cell), ' ');
  if (align == Align::kRight) line->append(padding);
  line->append(cell);
  if (align == Align::kLeft) line->append(padding);
}

// The factor of a unit, or 0 if there is no such unit.
double UnitFactor(std::string_view unit) {
  if (unit.empty() || unit == "B") return 1;
  const size_t power =
      std::string_view("KMGT").find(absl::ascii_toupper(static_cast<unsigned char>(unit[0])));
  if (power == std::string_view::npos) return 0;
  const std::string_view rest = unit.substr(1);
  if (rest == "B") return std::pow(1000.0, static_cast<double>(power + 1));
  if (rest == "iB") return std::pow(1024.0, static_cast<double>(power + 1));
  return 0;
}

}  // namespace

std::string JsonText(const Json& json, bool indent) {
  return json.dump(indent ? 2 : -1, ' ', false, Json::error_handler_t::replace);
}

void Table::Add(std::vector<std::string> cells) {
  ESKER_CHECK(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString() const {
  std::vector<std::vector<std::string>> lines;
  lines.emplace_back();
  for (const Column& column : columns_) lines[0].push_back(absl::AsciiStrToUpper(column.title));
  lines.insert(lines.end(), rows_.begin(), rows_.end());

  std::vector<size_t> widths(columns_.size());
  for (const auto& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(cells[i]));
  }
  std::string text;
  for (const auto& cells : lines) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) line.append("  ");
      AppendCell(cells[i], widths[i], columns_[i].align, &line);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text.append(line).push_back('\n');
  }
  return text;
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return absl::StrFormat("%d B", bytes);
  constexpr const char* kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.995 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", value < 10 ? 2 : value < 100 ? 1 : 0, value, kUnits[unit]);
}

std::string HumanRate(double bytes_per_second) {
  return absl::StrFormat("%.2f GB/s", bytes_per_second / 1e9);
}

std::string HumanDuration(int64_t milliseconds) {
  milliseconds = std::max<int64_t>(milliseconds, 0);
  if (milliseconds < 1000) return absl::StrFormat("%d ms", milliseconds);
  const int64_t seconds = milliseconds / 1000;
  if (seconds < 60) return absl::StrFormat("%.1f s", static_cast<double>(milliseconds / 100) / 10);
  const int64_t minutes = seconds / 60;
  if (minutes < 60) return absl::StrFormat("%d min %d s", minutes, seconds % 60);
  const int64_t hours = minutes / 60;
  if (hours < 24) return absl::StrFormat("%d h %d min", hours, minutes % 60);
  return absl::StrFormat("%d d %d h", hours / 24, hours % 24);
}

std::string HumanTime(int64_t unix_ms) {
  if (unix_ms == 0) return "-";
  const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm local{};
  char text[32];
  if (::localtime_r(&seconds, &local) == nullptr ||
      std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local) == 0) {
    return "?";
  }
  return text;
}

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  double value = 0;
  const double factor = UnitFactor(FromAbsl(absl::StripLeadingAsciiWhitespace(ToAbsl(text.substr(digits)))));
  if (digits == 0 || factor == 0 || !absl::SimpleAtod(ToAbsl(text.substr(0, digits)), &value) ||
      value * factor >= static_cast<double>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(StrCat("\"", Printable(text),
                                             "\" is not a number of bytes: expected digits and a unit, "
                                             "e.g. 4096, 500MB or 2GiB"));
  }
  return static_cast<uint64_t>(value * factor);
}

}  // namespace esker
