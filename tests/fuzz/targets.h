// What is fuzzed: every decoder of format/, and what trusts its results. Each function takes any bytes and
// must come back; a sanitizer or a failed check says what is wrong.
#pragma once

#include <span>
#include <string_view>

#include "format/base/bytes.h"

namespace esker::fuzz {

struct Target {
  std::string_view name;  // also the folder of its corpus
  void (*run)(ByteView input);
};

std::span<const Target> AllTargets();

}  // namespace esker::fuzz
