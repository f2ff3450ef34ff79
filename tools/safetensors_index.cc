#include "tools/safetensors_index.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/text.h"
#include "format/names.h"
#include "nlohmann/json.hpp"
#include "tools/safetensors.h"

namespace esker {
namespace {

constexpr const char* kWeightMap = "weight_map";

// Shards lie beside their index: another directory's files are not this model's.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// Parses, and finds the keys that stand twice: the parsed object has only the last.
class IndexParser {
 public:
  nlohmann::json Parse(std::string_view json) {
    const auto look = [this](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
      if (event == nlohmann::json::parse_event_t::key) NoteKey(depth, parsed.get_ref<const std::string&>());
      return true;
    };
    return nlohmann::json::parse(json, look, /*allow_exceptions=*/false);
  }

  // A tensor, or "weight_map" itself; empty if none stands twice.
  const std::string& twice() const { return twice_; }

 private:
  void NoteKey(int depth, const std::string& key) {
    if (depth == 1) in_weight_map_ = key == kWeightMap;
    if (depth > 2 || !in_weight_map_) return;
    if (!seen_[depth - 1].insert(key).second) twice_ = key;
  }

  bool in_weight_map_ = false;
  std::set<std::string> seen_[2];  // by depth
  std::string twice_;
};

}  // namespace

absl::StatusOr<WeightMap> ParseShardIndex(std::string_view json, const std::string& path) {
  if (json.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": an index of ", json.size(), " bytes (at most ",
                                                   kMaxSafetensorsHeaderBytes, ")"));
  }
  IndexParser parser;
  const nlohmann::json index = parser.Parse(json);
  if (index.is_discarded()) return absl::InvalidArgumentError(path + ": it is not JSON");
  if (!parser.twice().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": \"", Printable(parser.twice()), "\" stands twice"));
  }
  if (!index.is_object() || !index.contains(kWeightMap) || !index[kWeightMap].is_object()) {
    return absl::InvalidArgumentError(
        path + ": expected the index of a model's safetensors files, with an object \"weight_map\"");
  }
  WeightMap weight_map;
  for (const auto& [tensor, file] : index[kWeightMap].items()) {
    if (!file.is_string() || !IsPlainFileName(file.get_ref<const std::string&>())) {
      // Not the content of a container, which may be nested without end.
      const std::string found = file.is_structured()
                                    ? std::string(file.type_name())
                                    : file.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", Printable(tensor),
                       "\": expected the name of a file beside the index, found ", Printable(found, 80)));
    }
    weight_map[tensor] = file.get<std::string>();
  }
  return weight_map;
}

std::string ShardIndexJson(const WeightMap& weight_map, uint64_t total_bytes) {
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}, {kWeightMap, weight_map}};
  return index.dump(2) + "\n";
}

std::vector<std::vector<size_t>> SplitIntoShards(const std::vector<uint64_t>& tensor_bytes,
                                                 uint64_t max_shard_bytes) {
  std::vector<std::vector<size_t>> shards;
  std::vector<size_t> filling;
  uint64_t filled_bytes = 0;
  for (size_t i = 0; i < tensor_bytes.size(); ++i) {
    if (tensor_bytes[i] > max_shard_bytes) {
      shards.push_back({i});
      continue;
    }
    if (tensor_bytes[i] > max_shard_bytes - filled_bytes) {
      shards.push_back(std::move(filling));
      filling.clear();
      filled_bytes = 0;
    }
    filling.push_back(i);
    filled_bytes += tensor_bytes[i];
  }
  if (!filling.empty() || shards.empty()) shards.push_back(std::move(filling));
  return shards;
}

std::string ShardFileName(size_t shard, size_t shards) {
  if (shards == 1) return "model.safetensors";
  return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
}

}  // namespace esker
