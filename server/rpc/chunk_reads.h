// Reads chunks for clients without ever holding more of the buffer pool than reads may. (What the store keeps
// for other readers comes on top.)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "format/hash.h"
#include "server/rpc/backend.h"

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

// Calls `done` once, on one of the backend's threads; it must not wait for another read. Never blocks.
// `wanted` is asked, on one of the backend's threads, when the read's turn comes: if it is not OK, that is
// the answer. It is CANCELLED if `reader` was withdrawn from the read budget before.
void ReadHeldChunk(RpcBackend* backend, const void* reader, const Hash128& hash, ReadMode mode,
                   std::function<absl::Status()> wanted, std::function<void(HeldChunkOr)> done);

// How often who reads renews the lease: once a second, or more often if it is short.
int64_t RenewIntervalMillis(const RpcOptions& options);

}  // namespace esker
