// How long to wait before the next try: doubling, capped, with jitter, so that many ranks don't come back at
// once.
#pragma once

#include <cstdint>
#include <random>

#include "client/deadline.h"

namespace esker {

// Used by one thread.
class Backoff {
 public:
  Backoff() : random_(std::random_device{}()) {}

  // After something worked: the next wait is short again.
  void Reset() { next_ms_ = kFirstMs; }
  // Sleeps, but not beyond `deadline`.
  void Sleep(const Deadline& deadline);

 private:
  static constexpr uint64_t kFirstMs = 25;
  static constexpr uint64_t kLongestMs = 1600;

  uint64_t next_ms_ = kFirstMs;
  std::minstd_rand random_;
};

}  // namespace esker
