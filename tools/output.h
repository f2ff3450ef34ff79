// How results are shown: tables for people, one JSON document for programs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace esker {

// Keeps the order in which fields were set. Looking a key up is linear: not for maps with many keys.
using Json = nlohmann::ordered_json;

// One line, or indented. Bytes that are not UTF-8 are replaced, never an error.
std::string JsonText(const Json& json, bool indent);

enum class Align { kLeft, kRight };

// Text in columns, two spaces apart, headed by capitals. No rows: only the heading.
class Table {
 public:
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as columns (checked).
  void Add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Ends with a line break. No spaces at the ends of lines.
  std::string ToString() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "512 B", "1.50 MB", "2.15 GB": powers of 1000, as everywhere in Esker.
std::string HumanBytes(uint64_t bytes);
// "1.85 GB/s", for bytes a second.
std::string HumanRate(double bytes_per_second);
// "12 ms", "3.4 s", "5 min 12 s", "3 h 20 min", "4 d 6 h".
std::string HumanDuration(int64_t milliseconds);
// "2031-04-05 13:14:15" in the machine's time zone; "-" for 0.
std::string HumanTime(int64_t unix_ms);

// "2GiB", "1.5 MB", "4096": K, M, G, T followed by B are powers of 1000, by iB of 1024. kInvalidArgument.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);

}  // namespace esker
