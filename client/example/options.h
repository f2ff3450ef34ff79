// The command line of esker-train-text.
#pragma once

#include <cstdint>
#include <string>

namespace esker::example {

struct Options {
  std::string server = "127.0.0.1:7070";
  std::string run = "train-text";
  std::string text;
  uint32_t ranks = 4;
  uint64_t hidden = 1280;  // 2.5 million weights, 30 MB of state with Adam's moments
  uint64_t seed = 1;
  uint64_t steps = 200;
  uint64_t save_every = 10;
  uint64_t step_delay_ms = 0;
  uint64_t save_timeout_ms = 600'000;
  bool skip_when_busy =
      false;  // a save that is due while the one before is under way: skip it (on all ranks), or wait
  bool zstd = false;
  uint32_t max_restarts = 0;
  std::string final_state;  // empty: not written
  std::string loss_log;
};

}  // namespace esker::example
