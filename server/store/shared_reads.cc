#include "server/store/shared_reads.h"

#include <algorithm>
#include <utility>

namespace esker::store {

size_t KeptChunksFor(uint64_t pool_bytes) { return pool_bytes / RecordBytes(kMaxChunkBytes) / 4; }

void SharedReads::Read(const Hash128& hash, ReadDone done) {
  std::shared_ptr<const ChunkRead> kept;
  bool is_first = false;
  {
    MutexLock lock(&mu_);
    kept = FindKept(hash);
    if (kept == nullptr) {
      std::vector<ReadDone>& waiters = under_way_[hash];
      is_first = waiters.empty();
      waiters.push_back(done);
    }
    if (!is_first) ++joined_;
  }
  if (kept != nullptr) return done(std::move(kept));
  if (is_first) reads_->Read(hash, [this, hash](ChunkReadOr chunk) { EndRead(hash, std::move(chunk)); });
}

void SharedReads::EndRead(const Hash128& hash, ChunkReadOr chunk) {
  if (chunk.ok() && readers_->HasSeveral()) Keep(*chunk);
  std::vector<ReadDone> waiters;
  {
    MutexLock lock(&mu_);
    const auto reads = under_way_.find(hash);
    waiters = std::move(reads->second);
    under_way_.erase(reads);
  }
  // The last one gets this thread's own reference: when it lets go, the memory is free.
  for (size_t i = 0; i + 1 < waiters.size(); ++i) waiters[i](chunk);
  waiters.back()(std::move(chunk));
}

void SharedReads::Keep(std::shared_ptr<const ChunkRead> chunk) {
  if (kept_chunks_ == 0) return;
  std::shared_ptr<const ChunkRead> oldest;  // its memory goes back without the lock
  MutexLock lock(&mu_);
  if (kept_.size() == kept_chunks_) {
    oldest = std::move(kept_.front());
    kept_.pop_front();
  }
  kept_.push_back(std::move(chunk));
}

void SharedReads::DropUnlessWanted() {
  if (readers_->count() > 1) return;
  std::deque<std::shared_ptr<const ChunkRead>> dropped;
  MutexLock lock(&mu_);
  dropped.swap(kept_);
}

std::shared_ptr<const ChunkRead> SharedReads::FindKept(const Hash128& hash) const {
  const auto found =
      std::find_if(kept_.begin(), kept_.end(), [&](const auto& chunk) { return chunk->info.hash == hash; });
  return found == kept_.end() ? nullptr : *found;
}

uint64_t SharedReads::joined() const {
  MutexLock lock(&mu_);
  return joined_;
}

}  // namespace esker::store
