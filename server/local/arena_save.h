// One save of a part that lies in an arena: what a client does over gRPC, done by the server itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/chunk_record.h"
#include "format/codec.h"
#include "format/codec_choice.h"
#include "format/dtype.h"
#include "format/hash.h"
#include "format/proto/local.pb.h"
#include "format/proto/service.pb.h"
#include "server/local/arena.h"
#include "server/local/local_backend.h"

namespace esker {

// A chunk of a save, as it lies in an arena.
struct ArenaChunk {
  uint64_t record_offset = 0;
  uint64_t raw_bytes = 0;
  DType dtype = DType::kBytes;
  Hash128 hash{};

  uint64_t record_end() const { return record_offset + RecordBytes(raw_bytes); }
};

// What is remembered from save to save out of one arena.
struct ArenaHistory {
  explicit ArenaHistory(int workers) : codec_chooser(workers) {}

  // The last save that was not a delta: later ones may be stored as deltas of it, as long as it lies there.
  std::vector<ArenaChunk> base;

  // The chunks of the last part that was sealed, to tell how much of the next one is unchanged.
  absl::flat_hash_set<Hash128> last_chunks;
  CodecChooser codec_chooser;
};

// Begins the save, hashes its chunks, writes those that the store lacks straight from the arena (or through a
// buffer, if there is a codec), seals the part and reports it. Nothing that stands in the arena is trusted:
// the request was copied out of it, lengths are checked against the arena, and if the client changes a chunk
// while it is written, its readers find that its bytes are not those of its hash.
class ArenaSave {
 public:
  using Tell = std::function<void(const v1::LocalAnswer&)>;
  using TimePoint = std::chrono::steady_clock::time_point;
  // How many chunks are in the arena by now. kDeadlineExceeded: no more than before; other errors end the
  // save.
  using NextReady = std::function<absl::StatusOr<uint64_t>(TimePoint until)>;

  // `history`: of the saves out of this arena before this one. `tell` gets `accepted` and then `progress` now
  // and then, on the thread of Run.
  ArenaSave(LocalBackend* backend, std::shared_ptr<const Arena> arena, ArenaHistory* history, Tell tell);

  // Blocks until the part is durable and reported, or the save has failed; then the arena is not used any
  // more. `next_ready` is asked until all chunks are there, and those that are are stored meanwhile. Errors
  // are those of Coordinator and Store and of `next_ready`, kInvalidArgument for a request that contradicts
  // itself or the arena, kUnavailable if the server stops.
  absl::StatusOr<v1::LocalSealed> Run(v1::ArenaSave request, const NextReady& next_ready);

  // The save that was begun; without a save_id, none was.
  const v1::SaveContext& context() const { return context_; }

 private:
  struct Chunk : ArenaChunk {
    uint32_t crc32c = 0;  // of the raw bytes, if there is no codec
    bool whole = false;   // not as a delta: the store refused that
  };

  absl::Status Check(const v1::ArenaSave& request);
  absl::Status AddChunk(uint64_t raw_bytes, uint64_t dtype);
  void FindBase();
  absl::Status Begin();
  // For the choice of the saves to come.
  void LearnForChoice(double seconds);

  // Stores the chunks as they become ready, telling of progress meanwhile, until all are stored.
  absl::Status StoreAll(const NextReady& next_ready);
  // The same once all are ready.
  absl::Status AwaitStored();
  // Gives the workers more to do.
  void Add(const std::vector<size_t>& chunks);
  void AddLocked(std::span<const size_t> chunks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the save goes on.
  absl::Status TellProgress();
  void Work();
  // The next chunks that one worker takes; nothing if there are none, or the save has failed.
  std::vector<size_t> NextBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status StoreBatch(const std::vector<size_t>& batch);
  void Hash(Chunk* chunk) const;
  // Of these chunks, those whose content is not that of another one of the part.
  std::vector<size_t> TakeDistinct(const std::vector<size_t>& batch);
  // What is stored of the chunk, if not its raw bytes: kRaw if these are best.
  CodecId Encode(size_t index, std::vector<std::byte>* to) const;
  // The chunk of the same place in the base, if it lies in the arena as it was.
  const ArenaChunk* BaseOf(size_t index) const;
  void Put(size_t index);
  void EndPut(size_t index, const ChunkInfo& info, const absl::Status& status);
  bool IsDone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return working_ == 0 && puts_ == 0; }
  ByteView Raw(const ArenaChunk& chunk) const;

  absl::StatusOr<v1::PartEntry> Seal();
  uint64_t CountUnchanged(const std::vector<Hash128>& hashes);
  // Whether it has a base that the store holds. If not it is itself the base of the saves to come.
  bool IsDelta() const;

  LocalBackend* const backend_;
  const std::shared_ptr<const Arena> arena_;
  ArenaHistory* const history_;
  const Tell tell_;

  // Constant once chunks are stored, but for each chunk's hash, which is written by the one worker that has
  // it.
  v1::ArenaSave request_;
  const Codec* codec_ = nullptr;  // nullptr: none
  bool has_base_ = false;         // history_->base
  uint64_t raw_bytes_ = 0;
  v1::SaveContext context_;
  std::vector<Chunk> chunks_;

  mutable Mutex mu_;
  CondVar changed_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::deque<size_t> to_do_ ABSL_GUARDED_BY(mu_);
  int working_ ABSL_GUARDED_BY(mu_) = 0;  // workers that come back for more
  size_t puts_ ABSL_GUARDED_BY(mu_) = 0;  // under way in the store
  // As the store took deltas, or refused them for want of their bases.
  size_t deltas_taken_ ABSL_GUARDED_BY(mu_) = 0;
  size_t deltas_refused_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<Hash128, size_t> first_with_ ABSL_GUARDED_BY(mu_);
  v1::LocalProgress progress_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
