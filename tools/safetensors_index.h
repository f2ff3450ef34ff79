// A model that is spread over several safetensors files, as Hugging Face's libraries lay it out:
// model-00001-of-0000N.safetensors …, and beside them model.safetensors.index.json, which says in which file
// each tensor is:
//
//   {"metadata": {"total_size": bytes}, "weight_map": {tensor: file, …}}
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace esker {

inline constexpr std::string_view kShardIndexSuffix = ".safetensors.index.json";
inline constexpr const char* kShardIndexFile = "model.safetensors.index.json";

using WeightMap = std::map<std::string, std::string>;  // tensor → plain file name

// Reads the weight_map. Everything else in the index is others' business. kInvalidArgument names `path`: no
// JSON, no weight_map, a tensor that stands twice, a file name that is none or leads elsewhere.
absl::StatusOr<WeightMap> ParseShardIndex(std::string_view json, const std::string& path);
std::string ShardIndexJson(const WeightMap& weight_map, uint64_t total_bytes);

// Which tensors go into which shard, by their numbers: in the given order, each shard filled as long as the
// next tensor fits. A tensor of more than `max_shard_bytes` gets a shard of its own. At least one shard.
std::vector<std::vector<size_t>> SplitIntoShards(const std::vector<uint64_t>& tensor_bytes,
                                                 uint64_t max_shard_bytes);

// Counted from 0; a single shard is model.safetensors.
std::string ShardFileName(size_t shard, size_t shards);

}  // namespace esker
