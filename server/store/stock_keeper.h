// Keeps a store's stock of written segments up while the store has nothing else to do.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>

#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "server/store/chunk_io.h"
#include "server/store/segment_set.h"
#include "server/store/sessions.h"

namespace esker::store {

// Works on a thread of its own: a MiB at a time, at no more than 256 MiB/s and half of the disk's time, and
// only after a second without an open save or a read. Looks before each MiB, so a save or restore that begins
// shares the disk with one write at most.
class StockKeeper {
 public:
  // All must outlive it. The segments must have been recovered.
  StockKeeper(SegmentSet* segments, const Sessions* sessions, const ChunkIo* io, const Clock* clock);
  // Waits for one write at most.
  ~StockKeeper();
  StockKeeper(const StockKeeper&) = delete;
  StockKeeper& operator=(const StockKeeper&) = delete;

 private:
  void Keep();
  bool IsQuiet();
  // A step, and how long to rest after it.
  std::chrono::microseconds Tend();
  // Whether to go on after so long.
  bool Rest(std::chrono::microseconds duration);

  SegmentSet* const segments_;
  const Sessions* const sessions_;
  const ChunkIo* const io_;
  const Clock* const clock_;

  // The thread's.
  int64_t quiet_since_ms_;
  uint64_t chunks_read_ = 0;

  Mutex mu_;
  CondVar stop_changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace esker::store
