// What codecs are measured on: generated states of a training job in each dtype, and what a file holds.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/dtype.h"

namespace esker {

struct TensorSet {
  std::string name;
  DType dtype = DType::kBytes;
  std::vector<std::byte> bytes;
};

// Each of `bytes` (a multiple of 16): Gaussian weights in each float dtype and quantised to I8, Adam's two
// moments, token ids, zeros, random bytes. The same bytes at each call.
std::vector<TensorSet> GenerateTensorSets(uint64_t bytes);

// All tensors of a safetensors file, one set for each dtype; F32 ones once more, rounded to BF16, as a job in
// mixed precision has them. Errors of SafetensorsFile::Open.
absl::StatusOr<std::vector<TensorSet>> LoadTensorSets(const std::string& path);

}  // namespace esker
