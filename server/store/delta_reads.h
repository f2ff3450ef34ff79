// Reading chunks that are stored as deltas (format/delta.h): whoever asks gets them whole.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "format/base/mutex.h"
#include "format/base/thread_pool.h"
#include "server/io/buffer_pool.h"
#include "server/store/chunk_io.h"

namespace esker::store {

// Thread-safe. At no time does a read hold more than one piece of the buffer pool, as any other read: the
// difference is decoded into memory of the thread's own, and its piece given back, before the base is read.
class DeltaReads {
 public:
  // Both must outlive it.
  DeltaReads(BufferPool* buffers, ChunkIo* io);
  // Waits for all reads under way.
  ~DeltaReads();

  // As ChunkIo::Read, with every chunk whole: a delta comes as a raw chunk, whose hash nobody has checked.
  // Its read is kNotFound and kDataLoss also for the sake of its base.
  void Read(const Hash128& hash, ReadDone done);

 private:
  // One of the threads' memory, allocated once: two chunks.
  struct Scratch;

  void Resolve(std::shared_ptr<const ChunkRead> delta, const ReadDone& done);
  absl::Status DecodeDifference(std::shared_ptr<const ChunkRead> chunk, Scratch* scratch);
  absl::Status AddBase(const ChunkInfo& info, Scratch* scratch);

  BufferPool* const buffers_;
  ChunkIo* const io_;

  Mutex mu_;  // no other lock is taken under it
  CondVar idle_;
  uint64_t under_way_ ABSL_GUARDED_BY(mu_) = 0;

  ThreadPool workers_;  // last: its tasks use all of the above
};

}  // namespace esker::store
