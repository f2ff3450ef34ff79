// A moment until which something may take.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace esker {

// Regular type. Follows the steady clock, except in ForGrpc.
class Deadline {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // `ms` from now; more than a year counts as a year, so that no sum overflows.
  static Deadline After(uint64_t ms) {
    constexpr uint64_t kYearMs = uint64_t{366} * 24 * 3600 * 1000;
    return Deadline(std::chrono::steady_clock::now() + std::chrono::milliseconds(std::min(ms, kYearMs)));
  }
  static Deadline Sooner(const Deadline& a, const Deadline& b) { return Deadline(std::min(a.at_, b.at_)); }

  bool Passed() const { return std::chrono::steady_clock::now() >= at_; }
  // 0 if it passed.
  uint64_t LeftMs() const {
    const auto left = at_ - std::chrono::steady_clock::now();
    if (left.count() <= 0) return 0;
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(left).count());
  }
  TimePoint time() const { return at_; }
  // What a grpc::ClientContext and CompletionQueue::AsyncNext take.
  std::chrono::system_clock::time_point ForGrpc() const {
    return std::chrono::system_clock::now() + (at_ - std::chrono::steady_clock::now());
  }

 private:
  explicit Deadline(TimePoint at) : at_(at) {}

  TimePoint at_;
};

}  // namespace esker
