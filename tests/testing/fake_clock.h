// A clock that stands still until the test moves it.
#pragma once

#include <atomic>

#include "format/base/clock.h"

namespace esker::testing {

// Thread-safe.
class FakeClock final : public Clock {
 public:
  int64_t UnixMillis() const override { return unix_ms_; }
  int64_t MonotonicMillis() const override { return monotonic_ms_; }

  void Advance(int64_t ms) {
    monotonic_ms_ += ms;
    unix_ms_ += ms;
  }

 private:
  std::atomic<int64_t> unix_ms_ = 1'700'000'000'000;
  std::atomic<int64_t> monotonic_ms_ = 1'000'000;
};

}  // namespace esker::testing
