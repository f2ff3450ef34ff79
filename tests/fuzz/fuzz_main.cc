// libFuzzer's entry to one target: the one that ESKER_FUZZ_TARGET names.
#include "format/base/status.h"
#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const esker::fuzz::Target* const target = [] {
    for (const esker::fuzz::Target& each : esker::fuzz::AllTargets()) {
      if (each.name == ESKER_FUZZ_TARGET) return &each;
    }
    ESKER_CHECK(false);
  }();
  target->run({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
