// Reads chunks for clients without ever holding more of the buffer pool than reads may. (What the store keeps
// for other readers comes on top.)
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "format/base/thread_pool.h"
#include "format/hash.h"
#include "server/store/read_budget.h"
#include "server/store/store.h"

namespace esker {

// What a read asks of the budget before it knows how large the chunk is.
uint64_t LargestRecordBytes();

// A chunk that was read, with its share of the read budget; both are given back when it is destroyed. What
// several share counts for each.
class HeldChunk {
 public:
  // Takes over LargestRecordBytes() of the budget and gives back at once what the chunk does not need.
  HeldChunk(ReadBudget* budget, std::shared_ptr<const ChunkRead> chunk);
  ~HeldChunk();
  HeldChunk(const HeldChunk&) = delete;
  HeldChunk& operator=(const HeldChunk&) = delete;

  const ChunkInfo& info() const { return chunk_->info; }
  ByteView stored() const { return chunk_->stored(); }

 private:
  ReadBudget* const budget_;
  std::shared_ptr<const ChunkRead> chunk_;
  uint64_t budget_bytes_;
};

using HeldChunkOr = absl::StatusOr<std::shared_ptr<HeldChunk>>;

// Thread-safe. One for a store: all of its clients' reads share half of its buffer pool.
class ChunkReader {
 public:
  // `store` must outlive the reader.
  explicit ChunkReader(Store* store);
  // All chunks must have been given back.
  ~ChunkReader() = default;
  ChunkReader(const ChunkReader&) = delete;
  ChunkReader& operator=(const ChunkReader&) = delete;

  // Calls `done` once, on one of the reader's threads; it must not wait for another read. Never blocks.
  // `wanted` is asked, on one of the reader's threads, when the read's turn comes: if it is not OK, that is
  // the answer. It is CANCELLED if `client` was withdrawn before.
  void Read(const void* client, const Hash128& hash, ReadMode mode, std::function<absl::Status()> wanted,
            std::function<void(HeldChunkOr)> done);
  // Takes what waits for `client` out of the line.
  void Withdraw(const void* client) { budget_.Withdraw(client); }

  // Blocks until every chunk was given back. Returns false if that takes longer.
  bool WaitUntilIdle(std::chrono::milliseconds timeout) { return budget_.WaitUntilWhole(timeout); }

 private:
  Store* const store_;
  ReadBudget budget_;
  ThreadPool answers_;  // run `done`
  ThreadPool reads_;    // may wait for buffer memory. Nothing that gives memory back runs here
};

}  // namespace esker
