// Which tensors a damaged chunk takes with it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

// The names of the tensors and byte items (as "item NAME") that have bytes in each chunk, in the order of the
// part's bytes. Both messages have passed their Validate functions.
std::vector<std::vector<std::string>> NamesByChunk(const v1::Part& part, const v1::Layout& layout);

// Fetches the parts and layouts of one checkpoint as they are asked for, and keeps them. Not thread-safe.
class FaultNames {
 public:
  FaultNames(std::shared_ptr<Connection> connection, const v1::CheckpointRecord& checkpoint,
             uint64_t timeout_ms)
      : connection_(std::move(connection)), checkpoint_(checkpoint), timeout_ms_(timeout_ms) {}

  // What `rank`'s chunk holds; kOutOfRange if its part has no such chunk.
  absl::StatusOr<std::vector<std::string>> Of(uint32_t rank, uint32_t chunk_index);

 private:
  absl::StatusOr<std::vector<std::vector<std::string>>> Fetch(uint32_t rank);

  const std::shared_ptr<Connection> connection_;
  const v1::CheckpointRecord checkpoint_;
  const uint64_t timeout_ms_;
  std::map<uint32_t, std::vector<std::vector<std::string>>> ranks_;
};

}  // namespace esker
