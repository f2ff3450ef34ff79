// Aligned memory for O_DIRECT, allocated once and reused: first touch of fresh memory is slower than the disk
// (docs/architecture.md), so nothing on the hot path allocates.
#pragma once

#include <functional>
#include <memory>

#include "format/base/bytes.h"
#include "format/base/unique_fd.h"

namespace esker {

class BufferPool;

// A piece of the pool's memory, kBlockBytes-aligned; given back when destroyed. Movable. Must not outlive the
// pool. Or such a piece of somebody else's memory (Borrow).
class Buffer {
 public:
  Buffer() = default;
  // `bytes` are as aligned and stay as long as `owner` does, a copy of which is dropped with the buffer.
  static Buffer Borrow(MutableBytes bytes, std::shared_ptr<const void> owner);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  // The whole piece: at least the bytes asked for, a multiple of kBlockBytes. Content is whatever the last
  // user left.
  MutableBytes bytes() const { return bytes_; }
  std::byte* data() const { return bytes_.data(); }
  uint64_t size() const { return bytes_.size(); }
  explicit operator bool() const { return bytes_.data() != nullptr; }

 private:
  friend class BufferPool;
  Buffer(BufferPool* pool, MutableBytes bytes) : pool_(pool), bytes_(bytes) {}

  BufferPool* pool_ = nullptr;  // nullptr: borrowed, or empty
  std::shared_ptr<const void> owner_;
  MutableBytes bytes_;
};

// Thread-safe. Hands out at most capacity_bytes at a time; who comes when it is empty waits in order of
// arrival, so that a stream of small requests can't starve a large one. Who holds a piece while waiting for
// another can wait for ever, if enough others do the same: take what is needed at once.
class BufferPool {
 public:
  // Maps `capacity_bytes` (rounded up to kBlockBytes) at once and touches it. `capacity_bytes` must be at
  // least `max_buffer_bytes`, the largest piece that may be asked for.
  BufferPool(uint64_t capacity_bytes, uint64_t max_buffer_bytes);
  // All buffers must have been given back.
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // A piece of at least `bytes` (<= max_buffer_bytes); blocks until there is one.
  Buffer Acquire(uint64_t bytes);
  // The same without blocking: `ready` is called once with the piece, at once on this thread if there is one,
  // else later on the thread that gives enough memory back. Must be short and must not block.
  void AcquireAsync(uint64_t bytes, std::function<void(Buffer)> ready);

  // All of the pool's memory, for Disk::RegisterMemory.
  MutableBytes memory() const;
  // The same memory for other processes, who can map it for reading alone: it is sealed against any further
  // way to write to it, and against another size. Empty where the system has no such memory.
  const UniqueFd& descriptor() const;
  uint64_t in_use_bytes() const;

 private:
  friend class Buffer;
  struct Impl;
  void Release(MutableBytes bytes);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
