// What the ranks of handed_over_save_test save (dying_rank.cc).
#pragma once

#include <vector>

#include "tests/integration/job.h"

namespace esker::testing {

inline const std::vector<GlobalTensor>& DyingTensors() {
  static const auto* const kTensors = new std::vector<GlobalTensor>{
      {"weights", ElementType::kF32, {60, 100'000}},  // 24 MB
      {"bias", ElementType::kBF16, {60, 11}},
  };
  return *kTensors;
}

}  // namespace esker::testing
