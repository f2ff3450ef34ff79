#include "client/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "absl/strings/numbers.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// The number behind `key` in a file of "key number" lines.
std::optional<uint64_t> ReadField(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// The number that is all of a file; nothing if it is not one ("max").
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  uint64_t value = 0;
  if (!(file >> word) || !absl::SimpleAtoi(word, &value)) return std::nullopt;
  return value;
}

uint64_t LeftInGroup(const std::string& directory) {
  const std::optional<uint64_t> limit = ReadNumber(directory + "/memory.max");
  const std::optional<uint64_t> used = ReadNumber(directory + "/memory.current");
  if (!limit.has_value() || !used.has_value()) return kUnlimited;
  const uint64_t cache = ReadField(directory + "/memory.stat", "inactive_file").value_or(0);
  const uint64_t held = *used - std::min(*used, cache);
  return *limit - std::min(*limit, held);
}

// The group's path below the root, from the line "0::/path".
std::string GroupPath(const std::string& cgroup) {
  std::ifstream file(cgroup);
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with("0::/")) return line.substr(3);
  }
  return "/";
}

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& meminfo, const std::string& cgroup,
                              const std::string& cgroup_root) {
  uint64_t available = kUnlimited;
  if (const std::optional<uint64_t> kib = ReadField(meminfo, "MemAvailable:"); kib.has_value()) {
    available = *kib << 10;
  }
  // A group is bound by those above it too. In a container the path may be one of the host's, and the root
  // the group itself.
  std::string path = GroupPath(cgroup);
  while (!path.empty()) {
    available = std::min(available, LeftInGroup(cgroup_root + path));
    path.resize(path.rfind('/'));
  }
  return std::min(available, LeftInGroup(cgroup_root));
}

uint64_t AvailableMemoryBytes() {
  return AvailableMemoryBytes("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup");
}

}  // namespace esker
