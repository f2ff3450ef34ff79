#include "server/store/chunk_reader.h"

#include <utility>

#include "format/base/status.h"

namespace esker {
namespace {

constexpr int kAnswerThreads = 4;
constexpr int kReadThreads = 8;

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

ChunkReader::ChunkReader(Store* store)
    : store_(store),
      budget_(store->buffers()->memory().size() / 2),
      answers_(kAnswerThreads, "esker-read"),
      reads_(kReadThreads, "esker-readmem") {}

void ChunkReader::Read(const void* client, const Hash128& hash, ReadMode mode,
                       std::function<absl::Status()> wanted, std::function<void(HeldChunkOr)> done) {
  auto read = [this, hash, mode, wanted = std::move(wanted), done] {
    if (const absl::Status status = wanted(); !status.ok()) {
      budget_.GiveBack(LargestRecordBytes());
      return done(status);
    }
    store_->ReadChunk(hash, mode, [this, done](ChunkReadOr chunk) {
      HeldChunkOr held = Hold(&budget_, std::move(chunk));
      // On one of the store's threads: what follows must not hold up its next read.
      answers_.Schedule([done, held = std::move(held)]() mutable { done(std::move(held)); });
    });
  };
  budget_.Acquire(LargestRecordBytes(), client,
                  [this, read = std::move(read), done = std::move(done)](bool granted) {
                    if (granted) return reads_.Schedule(read);
                    answers_.Schedule([done] { done(absl::CancelledError("the reader has ended")); });
                  });
}

}  // namespace esker
