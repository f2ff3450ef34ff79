// Reads that several clients share: ranks that restore the same state want the same chunks at nearly the same
// time, and one read of the disk serves them all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "format/base/mutex.h"
#include "server/store/delta_reads.h"
#include "server/store/read_leases.h"

namespace esker::store {

// Thread-safe. Who asks for a chunk that is being read waits for that read. As clients are never quite at the
// same place, the chunks that were read last are kept, while there are readers to want them. Kept chunks hold
// memory of the buffer pool: they are few enough that the largest piece can still be had beside them,
// wherever they lie.
class SharedReads {
 public:
  // `kept_chunks`: at most so many are kept; KeptChunksFor says how many a pool can spare.
  SharedReads(DeltaReads* reads, const ReadLeases* readers, size_t kept_chunks)
      : reads_(reads), readers_(readers), kept_chunks_(kept_chunks) {}

  // As Store::ReadChunk. A chunk that is kept is given at once, on this thread.
  void Read(const Hash128& hash, ReadDone done);
  // Gives the memory of kept chunks back unless there are several readers: to be called when one has gone,
  // and when somebody else is about to need memory.
  void DropUnlessWanted();

  // How many reads needed no read of the disk.
  uint64_t joined() const;

 private:
  void EndRead(const Hash128& hash, ChunkReadOr chunk);
  void Keep(std::shared_ptr<const ChunkRead> chunk);
  std::shared_ptr<const ChunkRead> FindKept(const Hash128& hash) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  DeltaReads* const reads_;
  const ReadLeases* const readers_;
  const size_t kept_chunks_;

  mutable Mutex mu_;  // no other lock is taken under it
  absl::flat_hash_map<Hash128, std::vector<ReadDone>> under_way_ ABSL_GUARDED_BY(mu_);
  std::deque<std::shared_ptr<const ChunkRead>> kept_ ABSL_GUARDED_BY(mu_);  // oldest first
  uint64_t joined_ ABSL_GUARDED_BY(mu_) = 0;
};

// A quarter of the pool, if all were of the largest size. With n pieces held, the rest of the pool is in at
// most n + 1 gaps, so one of these has room for the largest piece as long as n <= (pool / largest - 1) / 2.
size_t KeptChunksFor(uint64_t pool_bytes);

}  // namespace esker::store
