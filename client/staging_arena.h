// The memory that a save's snapshot is copied into: allocated once, made present in the background, used
// again by each save.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/base/mutex.h"
#include "format/base/unique_fd.h"

namespace esker {

// One mapping, with huge pages where the system has them. Unmapped with its last reference.
//
// Views are how memory leaves this library without a copy: gRPC keeps one for each message that it has not
// yet dropped. While there is one, the mapping stays, and StagingArena does not hand it out for writing.
class StagingBlock : public std::enable_shared_from_this<StagingBlock> {
 public:
  // `shareable`: memory that another process can map, if the system gives such; else it is this process's
  // alone. kResourceExhausted if the system does not give as much.
  static absl::StatusOr<std::shared_ptr<StagingBlock>> Map(uint64_t bytes, bool shareable);
  ~StagingBlock();
  StagingBlock(const StagingBlock&) = delete;
  StagingBlock& operator=(const StagingBlock&) = delete;

  std::byte* data() { return data_; }
  uint64_t size() const { return size_; }
  // What to hand over to another process; sealed against another size. -1 if the memory is not shareable.
  int descriptor() const { return memory_.get(); }

  // A new view. It ends with the pointer's last copy, on any thread.
  std::shared_ptr<const void> View();
  // Waits until no view is left; false if that takes longer.
  bool AwaitNoViews(uint64_t timeout_ms);

  // Another process may read it for who knows how long: it is never to be written again.
  void Abandon() { abandoned_ = true; }
  bool abandoned() const { return abandoned_; }

 private:
  StagingBlock(UniqueFd memory, std::byte* data, uint64_t size)
      : memory_(std::move(memory)), data_(data), size_(size) {}
  void EndView();

  const UniqueFd memory_;
  std::byte* const data_;
  const uint64_t size_;
  std::atomic<bool> abandoned_ = false;

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

  // Whether the blocks that are made from now on are to be shareable.
  void ShareBlocks(bool share) { share_blocks_ = share; }
  ~StagingArena();
  StagingArena(const StagingArena&) = delete;
  StagingArena& operator=(const StagingArena&) = delete;

  // Allocates `bytes` ahead of the first Acquire, and has them touched in the background. Returns the block.
  absl::StatusOr<std::shared_ptr<StagingBlock>> Prefault(uint64_t bytes);

  // A block of at least `bytes` that nobody reads: the one before if it is large enough and all its views end
  // soon, else a new one. In the second case an old block with views (a connection that does not let go of
  // it) goes when they do, and never changes under them. kResourceExhausted gives the figures.
  absl::StatusOr<std::shared_ptr<StagingBlock>> Acquire(uint64_t bytes);

  // Keeps no block: what was handed out goes with its last user.
  void Forget();

 private:
  absl::Status Replace(uint64_t bytes);
  void Touch(StagingBlock* block);
  void StopToucher();

  const uint64_t views_end_ms_;
  bool share_blocks_ = false;
  std::shared_ptr<StagingBlock> block_;
  std::thread toucher_;
  std::atomic<bool> stop_toucher_ = false;
};

}  // namespace esker
