// Time, passed in and never global, so that tests and the simulation can hold it in their hands.
#pragma once

#include <cstdint>

namespace esker {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Milliseconds since the Unix epoch. For records that people read; may jump.
  virtual int64_t UnixMillis() const = 0;
  // Milliseconds since some fixed moment; never goes back. For timeouts and leases.
  virtual int64_t MonotonicMillis() const = 0;
};

// The machine's clock. Lives as long as the process.
const Clock* SystemClock();

}  // namespace esker
