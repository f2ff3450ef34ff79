#include "server/rpc/chunk_reads.h"

#include <algorithm>
#include <utility>

#include "format/base/status.h"

namespace esker {
namespace {

HeldChunkOr Hold(ReadBudget* budget, ChunkReadOr chunk) {
  if (chunk.ok()) return std::make_shared<HeldChunk>(budget, *std::move(chunk));
  budget->GiveBack(LargestRecordBytes());
  return chunk.status();
}

}  // namespace

uint64_t LargestRecordBytes() { return RecordBytes(kMaxChunkBytes); }

HeldChunk::HeldChunk(ReadBudget* budget, std::shared_ptr<const ChunkRead> chunk)
    : budget_(budget), chunk_(std::move(chunk)), budget_bytes_(chunk_->record.size()) {
  ESKER_CHECK(budget_bytes_ <= LargestRecordBytes());
  budget_->GiveBack(LargestRecordBytes() - budget_bytes_);
}

HeldChunk::~HeldChunk() {
  // The memory first: whoever sees that the budget is whole may close the store, and with it the pool.
  chunk_ = nullptr;
  budget_->GiveBack(budget_bytes_);
}

void ReadHeldChunk(RpcBackend* backend, const void* reader, const Hash128& hash, ReadMode mode,
                   std::function<absl::Status()> wanted, std::function<void(HeldChunkOr)> done) {
  auto read = [backend, hash, mode, wanted = std::move(wanted), done] {
    if (const absl::Status status = wanted(); !status.ok()) {
      backend->read_budget.GiveBack(LargestRecordBytes());
      return done(status);
    }
    backend->store->ReadChunk(hash, mode, [backend, done](ChunkReadOr chunk) {
      HeldChunkOr held = Hold(&backend->read_budget, std::move(chunk));
      // On one of the store's threads: what follows must not hold up its next read.
      backend->streams.Schedule([done, held = std::move(held)]() mutable { done(std::move(held)); });
    });
  };
  backend->read_budget.Acquire(
      LargestRecordBytes(), reader, [backend, read = std::move(read), done = std::move(done)](bool granted) {
        if (granted) return backend->reads.Schedule(read);
        backend->streams.Schedule([done] { done(absl::CancelledError("the reader has ended")); });
      });
}

int64_t RenewIntervalMillis(const RpcOptions& options) {
  return static_cast<int64_t>(std::min<uint64_t>(1000, options.read_lease_ttl_ms / 4));
}

}  // namespace esker
