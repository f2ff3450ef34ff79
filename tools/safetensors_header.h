// The JSON of a safetensors header, read event by event: so a field that stands twice is seen, nothing is
// nested deeper than it should be, and the order is kept. Part of safetensors.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "tools/safetensors.h"

namespace esker {

// A tensor as the header states it; nothing is checked but that each field is there, once, and of its type.
struct RawTensor {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> data_offsets;
};

struct RawHeader {
  std::vector<RawTensor> tensors;
  SafetensorsMetadata metadata;
};

// kInvalidArgument says what is wrong, and where (tensor and field, or the byte).
absl::Status ParseSafetensorsJson(std::string_view json, RawHeader* header);

// The same for the object of __metadata__ alone.
absl::Status ParseMetadataJson(std::string_view json, SafetensorsMetadata* metadata);

}  // namespace esker
