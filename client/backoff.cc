#include "client/backoff.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace esker {

void Backoff::Sleep(const Deadline& deadline) {
  std::uniform_int_distribution<uint64_t> jittered(next_ms_ / 2, next_ms_);
  const uint64_t ms = std::min(jittered(random_), deadline.LeftMs());
  next_ms_ = std::min(next_ms_ * 2, kLongestMs);
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

}  // namespace esker
