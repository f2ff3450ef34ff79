// The memory that a save's snapshot is copied into: allocated once, made present in the background, used
// again by each save.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/base/mutex.h"

namespace esker {

// One anonymous mapping, with huge pages where the system has them. Unmapped with its last reference.
//
// Views are how memory leaves this library without a copy: gRPC keeps one for each message that it has not
// yet dropped. While there is one, the mapping stays, and StagingArena does not hand it out for writing.
class StagingBlock : public std::enable_shared_from_this<StagingBlock> {
 public:
  // kResourceExhausted if the system does not give as much.
  static absl::StatusOr<std::shared_ptr<StagingBlock>> Map(uint64_t bytes);
  ~StagingBlock();
  StagingBlock(const StagingBlock&) = delete;
  StagingBlock& operator=(const StagingBlock&) = delete;

  std::byte* data() { return data_; }
  uint64_t size() const { return size_; }

  // A new view. It ends with the pointer's last copy, on any thread.
  std::shared_ptr<const void> View();
  // Waits until no view is left; false if that takes longer.
  bool AwaitNoViews(uint64_t timeout_ms);

 private:
  StagingBlock(std::byte* data, uint64_t size) : data_(data), size_(size) {}
  void EndView();

  std::byte* const data_;
  const uint64_t size_;

  Mutex mu_;
  CondVar no_views_;
  uint64_t views_ ABSL_GUARDED_BY(mu_) = 0;
};

// Used by one thread at a time.
class StagingArena {
 public:
  // `views_end_ms`: how long Acquire waits for views to end. A torn-down connection drops its messages within
  // milliseconds; the default is for a machine that is very busy.
  explicit StagingArena(uint64_t views_end_ms = 5'000) : views_end_ms_(views_end_ms) {}
  ~StagingArena();
  StagingArena(const StagingArena&) = delete;
  StagingArena& operator=(const StagingArena&) = delete;

  // Allocates `bytes` and has them touched in the background.
  absl::Status Prefault(uint64_t bytes);

  // A block of at least `bytes` that nobody reads: the one before if it is large enough and all its views end
  // soon, else a new one. In the second case an old block with views (a connection that does not let go of
  // it) goes when they do, and never changes under them. kResourceExhausted gives the figures.
  absl::StatusOr<std::shared_ptr<StagingBlock>> Acquire(uint64_t bytes);

  // Keeps no block: what was handed out goes with its last user.
  void Forget();

 private:
  absl::Status Replace(uint64_t bytes);
  void StopToucher();

  const uint64_t views_end_ms_;
  std::shared_ptr<StagingBlock> block_;
  std::thread toucher_;
  std::atomic<bool> stop_toucher_ = false;
};

}  // namespace esker
