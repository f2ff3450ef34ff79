#include "server/store/stock_keeper.h"

#include <pthread.h>

#include <algorithm>

#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int64_t kQuietMs = 1000;
constexpr int64_t kRestAfterErrorMs = 60'000;
constexpr milliseconds kLook{250};
constexpr milliseconds kStep{4};

}  // namespace

StockKeeper::StockKeeper(SegmentSet* segments, const Sessions* sessions, const ChunkIo* io,
                         const Clock* clock)
    : segments_(segments),
      sessions_(sessions),
      io_(io),
      clock_(clock),
      quiet_since_ms_(clock->MonotonicMillis()),
      thread_([this] { Keep(); }) {
  pthread_setname_np(thread_.native_handle(), "esker-stock");
}

StockKeeper::~StockKeeper() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stop_changed_.NotifyAll();
  thread_.join();
}

void StockKeeper::Keep() {
  microseconds rest = kLook;
  while (Rest(rest)) rest = IsQuiet() ? Tend() : kLook;
}

bool StockKeeper::IsQuiet() {
  const int64_t now_ms = clock_->MonotonicMillis();
  const uint64_t chunks_read = io_->chunks_read();
  if (sessions_->HasOpenSaves() || chunks_read != chunks_read_) {
    chunks_read_ = chunks_read;
    quiet_since_ms_ = std::max(quiet_since_ms_, now_ms);
  }
  return now_ms - quiet_since_ms_ >= kQuietMs;
}

microseconds StockKeeper::Tend() {
  const steady_clock::time_point start = steady_clock::now();
  const absl::StatusOr<bool> more = segments_->TendStock();
  if (!more.ok()) {
    spdlog::warn("store: no segment can be written ahead of use: {}", more.status().ToString());
    quiet_since_ms_ = clock_->MonotonicMillis() + kRestAfterErrorMs;
  }
  if (!more.value_or(false)) return kLook;
  const auto took = std::chrono::duration_cast<microseconds>(steady_clock::now() - start);
  return std::max<microseconds>(took, kStep - took);
}

bool StockKeeper::Rest(microseconds duration) {
  const auto deadline = steady_clock::now() + duration;
  MutexLock lock(&mu_);
  while (!stopping_ && stop_changed_.WaitUntil(&mu_, deadline)) {
  }
  return !stopping_;
}

}  // namespace esker::store
