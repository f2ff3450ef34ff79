// Which names and numbers are legal. Every way in checks them: client, server and tools.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace esker {

inline constexpr size_t kMaxTensorNameBytes = 4096;
inline constexpr uint32_t kMaxWorldSize = 1 << 20;
inline constexpr uint64_t kMaxStep = (uint64_t{1} << 63) - 1;

// [a-z0-9][a-z0-9._-]{0,127}. kInvalidArgument shows the name (escaped, cut) and the rule. So do the others.
absl::Status ValidateRunName(std::string_view run);
// 1 to 4096 bytes of UTF-8 without NUL. "/" and ".." are allowed: a name is never a path.
absl::Status ValidateTensorName(std::string_view name);
// 1 to 256 bytes of printable ASCII.
absl::Status ValidateIncarnation(std::string_view token);
absl::Status ValidateStep(uint64_t step);
// 1 <= world_size <= kMaxWorldSize and rank < world_size.
absl::Status ValidateRank(uint64_t rank, uint64_t world_size);

// "RUN@STEP" or "RUN@latest".
struct CheckpointName {
  std::string run;
  bool latest = false;
  uint64_t step = 0;
};
absl::StatusOr<CheckpointName> ParseCheckpointName(std::string_view text);

// Any bytes as printable ASCII, with \xNN escapes, cut to about `limit` characters: for error messages and
// terminals.
std::string Printable(std::string_view bytes, size_t limit = 120);

// The catalog's keys (proto/catalog.proto).
std::string RunKey(std::string_view run);
std::string SaveKey(std::string_view run, uint64_t step);
std::string CheckpointKey(std::string_view run, uint64_t step);
// The prefixes that list all of a kind, or all of a run.
inline constexpr std::string_view kRunPrefix = "run/";
std::string SavePrefix(std::string_view run);
std::string CheckpointPrefix(std::string_view run);

}  // namespace esker
