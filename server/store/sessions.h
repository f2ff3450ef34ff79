// What the store keeps in memory for saves and reads under way: promises of space, pins on chunks, and chunks
// that are written but not yet in the index.
//
// A chunk's life (docs/design/0001-store.md): unknown -> writing -> written -> (Seal) in the index -> dying
// -> unknown. A *pin* keeps a chunk from dying, whoever else lets go of it. Whether the index has a chunk is
// not known here: callers pin first and look then, so that what they find stays.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "format/chunk_record.h"
#include "server/store/store.h"

namespace esker::store {

using PutDone = std::function<void(absl::Status)>;

// A chunk in a segment that no index entry names.
struct WrittenChunk {
  ChunkInfo info;
  RecordPlace place;
  uint64_t write_number = 0;  // SegmentSet::WriteFinished
  Hash128 base{};             // of a delta: pinned as long as this is here

  bool is_delta() const { return info.codec == CodecId::kDelta; }
};

// What nobody holds any more after pins went. The caller must see to both: reap the chunks, release the
// places.
struct LetGo {
  std::vector<Hash128> unreferenced;    // in the index, with refs == 0
  std::vector<WrittenChunk> forgotten;  // written, never sealed
};

// Thread-safe; never blocks but in AwaitWrites. Takes no other lock under its own.
class Sessions {
 public:
  // At most so many chunks are pinned at a time: about 120 bytes of memory each.
  static constexpr size_t kMaxPinnedChunks = 900'000;

  explicit Sessions(const Clock* clock, size_t max_pinned_chunks = kMaxPinnedChunks)
      : clock_(clock), max_pinned_chunks_(max_pinned_chunks) {}

  // --- promises ----------------------------------------------------------------------------------

  // Promises `bytes` in all to the part, of which what it has written already is taken off, if all promises
  // fit into `available_bytes`. Returns nothing, or what was promised to others.
  std::optional<uint64_t> Promise(const PartRef& part, uint64_t bytes, uint64_t available_bytes);
  uint64_t promised_bytes() const;

  // --- pins --------------------------------------------------------------------------------------

  enum class Held {
    kLookUp,   // pinned: if the index has it, it stays
    kWriting,  // pinned, on its way to a segment
    kWritten,  // pinned, in a segment
    kDying,    // not pinned: about to be removed
  };
  // Pins each chunk for the part, until UnpinForPart or EndPart. kResourceExhausted names the limit.
  absl::StatusOr<std::vector<Held>> PinForPart(const PartRef& part, std::span<const Hash128> hashes);
  LetGo UnpinForPart(const PartRef& part, std::span<const Hash128> hashes);
  // Pins for an operation: each Pin that was not kDying takes one Unpin.
  std::vector<Held> Pin(std::span<const Hash128> hashes);
  // For a read of what the index has: false if the chunk is about to be removed (and perhaps written anew).
  bool PinForRead(const Hash128& hash);
  LetGo Unpin(std::span<const Hash128> hashes);

  // The part is sealed, or its save is over: pins and promise go.
  LetGo EndPart(const PartRef& part);
  LetGo EndSave(const SaveRef& save);
  std::vector<std::pair<SaveRef, int64_t>> OpenSaves() const;
  bool HasOpenSaves() const;

  // --- writing -----------------------------------------------------------------------------------

  enum class PutStep {
    kLookUp,  // look in the index, then FinishPut (it is there) or write
    kWrite,
    kWait,  // somebody writes it: `done` was taken and will be among the waiters
    kDone,  // it is written
  };
  // Begins a Put and pins the chunk for the part. kInvalidArgument if a chunk of this name has other raw
  // bytes; kFailedPrecondition if a delta would take the place of a damaged chunk, which may be the base of
  // others. With kLookUp and kWrite the caller must call FinishPut or FinishWrite in the end. With these two
  // a delta takes over a pin of its base (Pin) that the caller has.
  absl::StatusOr<PutStep> BeginPut(const PartRef& part, const ChunkInfo& info, PutDone* done,
                                   const Hash128& base = {});
  // The chunk needs no write, or it failed. Returns who waits for it.
  std::vector<PutDone> FinishPut(const Hash128& hash, LetGo* let_go);
  // The chunk is written.
  std::vector<PutDone> FinishWrite(const PartRef& part, const WrittenChunk& chunk, LetGo* let_go);
  // Blocks until none of these is being written.
  void AwaitWrites(std::span<const Hash128> hashes);

  // --- for the committer -------------------------------------------------------------------------

  std::vector<std::optional<WrittenChunk>> GetWritten(std::span<const Hash128> hashes) const;
  // These are in the index now, and deltas have their bases referred to there.
  LetGo Indexed(std::span<const Hash128> hashes);
  // Drops the chunks of a segment whose fdatasync failed, but for the first `synced_writes` writes: they are
  // in `forgotten`.
  LetGo ForgetUnsynced(uint64_t segment_id, uint64_t synced_writes);

  // Marks those that nobody pins: from now on Pin says kDying. For each hash, whether it was marked.
  std::vector<bool> MarkDying(std::span<const Hash128> hashes);
  // They are gone (or stay after all).
  void EndDying(std::span<const Hash128> hashes);
  // The index keeps these with refs == 0 because they were pinned. Returns those that no longer are.
  std::vector<Hash128> KeepUnreferenced(std::span<const Hash128> hashes);
  // A part names these again.
  void Referenced(std::span<const Hash128> hashes);

  // --- damage ------------------------------------------------------------------------------------

  // A read found that the record of a chunk in the index is damaged. From now on Offer lacks it and a Put
  // writes it anew, so that the next save of the same content heals every checkpoint that names it. Forgotten
  // at a restart.
  void MarkDamaged(const Hash128& hash);
  bool IsDamaged(const Hash128& hash) const;
  // The index names a new record.
  void Healed(const Hash128& hash);

 private:
  struct Session {
    uint64_t promised_bytes = 0;  // what is left of it
    uint64_t written_bytes = 0;
    int64_t active_ms = 0;
    absl::flat_hash_set<Hash128> pins;
  };
  struct Write {
    uint64_t raw_bytes = 0;
    std::optional<Hash128> base;  // pinned
    std::vector<PutDone> waiters;
  };

  Session& Touch(const PartRef& part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Held PinLocked(const Hash128& hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UnpinLocked(const Hash128& hash, LetGo* let_go) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetIfUnpinned(const Hash128& hash, LetGo* let_go) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of written_, with the pin of a base.
  void EraseWritten(const Hash128& hash, LetGo* let_go) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndSession(std::map<PartRef, Session>::iterator session, LetGo* let_go)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckLimit(size_t more) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock* const clock_;
  const size_t max_pinned_chunks_;

  mutable Mutex mu_;
  CondVar write_ended_;
  std::map<PartRef, Session> sessions_ ABSL_GUARDED_BY(mu_);
  uint64_t promised_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<Hash128, uint32_t> pins_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Hash128, Write> writing_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Hash128, WrittenChunk> written_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<Hash128> dying_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<Hash128> unreferenced_ ABSL_GUARDED_BY(mu_);  // in the index, refs == 0, pinned
  absl::flat_hash_set<Hash128> damaged_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker::store
