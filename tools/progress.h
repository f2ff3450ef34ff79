// A progress bar with rate and time left, on a terminal only: in a pipe it prints nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "format/base/clock.h"
#include "format/base/mutex.h"

namespace esker {

// The bar's line, at most `columns` wide and without a line break:
//   "restoring  [#######.......]  52%  1.10 GB of 2.15 GB  1.85 GB/s  0.6 s left"
std::string ProgressLine(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                         int64_t elapsed_ms, int columns);

// Thread-safe.
class ProgressBar {
 public:
  // Draws on stderr if that is a terminal.
  explicit ProgressBar(std::string label);
  // Draws by `write`, `columns` wide; draws nothing if `write` is empty. For tests.
  ProgressBar(std::string label, int columns, const Clock* clock,
              std::function<void(const std::string&)> write);
  ~ProgressBar() { Remove(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws at most ten times a second. Updates may come out of order: the bar never goes back.
  void Update(uint64_t done_bytes, uint64_t total_bytes);
  // Takes the bar away, so that what comes next stands at the start of the line.
  void Remove();

 private:
  const std::string label_;
  const int columns_;
  const Clock* const clock_;
  const std::function<void(const std::string&)> write_;
  const int64_t started_ms_;

  Mutex mu_;
  uint64_t done_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t next_draw_ms_ ABSL_GUARDED_BY(mu_) = 0;
  bool drawn_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace esker
