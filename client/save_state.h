// What a SaveHandle and the save behind it share.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "esker/checkpointer.h"
#include "format/base/mutex.h"

namespace esker {

// Figures that the save counts up and a handle may read at any moment.
struct SaveCounters {
  std::atomic<SaveProgress::Phase> phase = SaveProgress::Phase::kUploading;
  std::atomic<uint64_t> raw_bytes = 0;
  std::atomic<uint64_t> processed_bytes = 0;
  std::atomic<uint64_t> sent_bytes = 0;
  std::atomic<uint64_t> deduplicated_bytes = 0;
  std::atomic<uint64_t> unchanged_bytes = 0;
  std::atomic<Transport> transport = Transport::kAuto;
};

// Thread-safe.
struct SaveHandle::Shared {
  explicit Shared(uint64_t step) : step(step) {}

  // The save is over. Called once.
  void Finish(absl::Status status);

  const uint64_t step;
  SaveCounters counters;

  Mutex mu;
  CondVar finished;
  bool done ABSL_GUARDED_BY(mu) = false;
  absl::Status result ABSL_GUARDED_BY(mu);
};

}  // namespace esker
