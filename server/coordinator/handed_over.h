// Saves that the server itself brings to their end, from memory that ranks have handed over to it
// (server/local): with a rank's process its wish to have them does not end.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"

namespace esker {

// Thread-safe.
class HandedOver {
 public:
  explicit HandedOver(const Clock* clock) : clock_(clock) {}

  // A rank's part of a save of `run` was handed over; until the result is dropped. Must not outlive this.
  std::shared_ptr<const void> Hold(const std::string& run);

  // What a new attempt is told, which would abort them: kUnavailable (try again) as long as there are some,
  // for kPatienceMs from the first time on.
  absl::Status CheckNone(const std::string& run);

  // A restarting job is not held up for longer: what is lost then is one checkpoint.
  static constexpr int64_t kPatienceMs = 15'000;

 private:
  struct Run {
    int parts = 0;
    int64_t asked_first_ms = 0;  // 0: nobody asked
  };
  void Drop(const std::string& run);

  const Clock* const clock_;
  Mutex mu_;
  std::map<std::string, Run> runs_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
