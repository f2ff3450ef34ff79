// What `esker save` reads: safetensors files, one by one or as a model that is spread over several.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "esker/state.h"
#include "tools/safetensors.h"
#include "tools/safetensors_index.h"

namespace esker {

struct SaveInput {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::vector<SourceTensor> tensors;  // point into the files
  SafetensorsMetadata metadata;       // of all files
  uint64_t raw_bytes = 0;
};

// Each path is a .safetensors file; the index of a model's files (….json), which has to agree with them; or a
// directory with one such index, or with a single file.
//
// kNotFound: a path, or a file that an index names. kInvalidArgument: a tensor that is in two files, or in
// another file than the index says; metadata that two files disagree on; errors of the formats.
absl::StatusOr<SaveInput> ReadSaveInput(const std::vector<std::string>& paths);

}  // namespace esker
