// The data path: records into segments, and out of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/base/thread_pool.h"
#include "server/io/buffer_pool.h"
#include "server/store/committer.h"
#include "server/store/index.h"
#include "server/store/segment_set.h"
#include "server/store/sessions.h"
#include "server/store/store.h"

namespace esker::store {

using ReadDone = std::function<void(ChunkReadOr)>;

// Reads and writes of chunks. Thread-safe. What the disk's threads report is handled on two threads of its
// own, so that a check of a record, or a user's callback, holds up no other operation of the disk.
class ChunkIo {
 public:
  ChunkIo(BufferPool* buffers, const Index* index, SegmentSet* segments, Sessions* sessions,
          Committer* committer);
  // Waits for all operations under way.
  ~ChunkIo();

  // Store::Put and Store::ReadChunk, from the disk.
  void Put(const PartRef& part, const ChunkInfo& info, Buffer record, PutDone done);
  void Read(const Hash128& hash, ReadDone done);
  // How many reads of the disk were started.
  uint64_t chunks_read() const { return chunks_read_; }

 private:
  struct Write {
    PartRef part;
    ChunkInfo info;
    Hash128 base{};  // of a delta
    Buffer record;
    WritePlace place{};
    int attempts = 0;
  };
  struct ReadOp {
    ChunkEntry entry;
    Buffer record;
    std::shared_ptr<DiskFile> file;
    ReadDone done;
  };

  // Pins the base of a delta. kFailedPrecondition if the store does not hold it whole.
  absl::StatusOr<Hash128> PinBase(const ChunkInfo& info, const Buffer& record);
  bool CanBeBase(const Hash128& base, const ChunkInfo& of) const;
  void Unpin(const Hash128& hash);
  absl::StatusOr<bool> IsInIndex(const ChunkInfo& info) const;
  void EndPut(const Hash128& hash, const absl::Status& status);
  void StartWrite(std::shared_ptr<Write> write);
  void EndWrite(const std::shared_ptr<Write>& write, const absl::Status& status);
  void GiveUp(const std::shared_ptr<Write>& write, const absl::Status& status);

  absl::StatusOr<std::shared_ptr<ReadOp>> PrepareRead(const Hash128& hash);
  bool IsStillAt(const ChunkEntry& entry) const;
  void EndRead(const std::shared_ptr<ReadOp>& read, absl::Status status);

  void Enter();
  void Leave();

  BufferPool* const buffers_;
  const Index* const index_;
  SegmentSet* const segments_;
  Sessions* const sessions_;
  Committer* const committer_;

  std::atomic<uint64_t> chunks_read_ = 0;

  Mutex mu_;  // no other lock is taken under it
  CondVar idle_;
  uint64_t under_way_ ABSL_GUARDED_BY(mu_) = 0;

  ThreadPool workers_;  // last: its tasks use all of the above
};

}  // namespace esker::store
