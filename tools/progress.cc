#include "tools/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "tools/output.h"

namespace esker {
namespace {

constexpr int64_t kDrawEveryMs = 100;
constexpr int kMaxBarCells = 40;

int TerminalColumns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::function<void(const std::string&)> StderrIfTerminal() {
  if (::isatty(STDERR_FILENO) == 0) return nullptr;
  return [](const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
}

}  // namespace

std::string ProgressLine(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                         int64_t elapsed_ms, int columns) {
  done_bytes = std::min(done_bytes, total_bytes);
  const double fraction =
      total_bytes == 0 ? 1.0 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  std::string figures = absl::StrFormat("%3d%%  %s of %s", static_cast<int>(fraction * 100),
                                        HumanBytes(done_bytes), HumanBytes(total_bytes));
  if (elapsed_ms > 0 && done_bytes > 0) {
    const double bytes_per_ms = static_cast<double>(done_bytes) / static_cast<double>(elapsed_ms);
    const double left_ms = static_cast<double>(total_bytes - done_bytes) / bytes_per_ms;
    absl::StrAppendFormat(&figures, "  %s  %s left", HumanRate(bytes_per_ms * 1000),
                          HumanDuration(static_cast<int64_t>(left_ms)));
  }
  // Label, two spaces, the bar in brackets, two spaces, figures.
  const int room = columns - static_cast<int>(label.size() + figures.size()) - 6;
  std::string line = label + "  ";
  if (room >= 8) {
    const int cells = std::min(room, kMaxBarCells);
    const auto filled = static_cast<size_t>(fraction * cells);
    line += "[" + std::string(filled, '#') + std::string(static_cast<size_t>(cells) - filled, '.') + "]  ";
  }
  line += figures;
  return line.substr(0, static_cast<size_t>(std::max(columns, 1)));
}

ProgressBar::ProgressBar(std::string label)
    : ProgressBar(std::move(label), TerminalColumns() - 1, SystemClock(), StderrIfTerminal()) {}

ProgressBar::ProgressBar(std::string label, int columns, const Clock* clock,
                         std::function<void(const std::string&)> write)
    : label_(std::move(label)),
      columns_(columns),
      clock_(clock),
      write_(std::move(write)),
      started_ms_(clock->MonotonicMillis()) {}

void ProgressBar::Remove() {
  MutexLock lock(&mu_);
  if (drawn_) write_("\r\x1b[K");
  drawn_ = false;
}

void ProgressBar::Update(uint64_t done_bytes, uint64_t total_bytes) {
  if (!write_) return;
  MutexLock lock(&mu_);
  done_bytes_ = std::max(done_bytes_, done_bytes);
  const int64_t now_ms = clock_->MonotonicMillis();
  if (drawn_ && now_ms < next_draw_ms_) return;
  drawn_ = true;
  next_draw_ms_ = now_ms + kDrawEveryMs;
  write_("\r\x1b[K" + ProgressLine(label_, done_bytes_, total_bytes, now_ms - started_ms_, columns_));
}

}  // namespace esker
