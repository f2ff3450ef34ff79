#include "format/base/clock.h"

#include <chrono>

namespace esker {
namespace {

class RealClock final : public Clock {
 public:
  int64_t UnixMillis() const override { return Millis(std::chrono::system_clock::now()); }
  int64_t MonotonicMillis() const override { return Millis(std::chrono::steady_clock::now()); }

 private:
  template <typename TimePoint>
  static int64_t Millis(TimePoint now) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  }
};

}  // namespace

const Clock* SystemClock() {
  static const RealClock clock;
  return &clock;
}

}  // namespace esker
