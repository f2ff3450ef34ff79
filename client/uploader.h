// Brings a snapshot's chunks to one server: hash, offer, encode, send, until the server holds each of them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "client/connection.h"
#include "client/encode_buffers.h"
#include "client/put_stream.h"
#include "client/save_state.h"
#include "client/snapshot.h"
#include "format/base/thread_pool.h"
#include "format/codec.h"
#include "format/codec_choice.h"

namespace esker {

struct UploadOptions {
  const Codec* codec = nullptr;  // nullptr: every chunk raw
  bool choose_codec = false;     // leaves `codec` out where raw is faster
  bool delta = false;  // stores a chunk by its difference from the snapshot's base where that is less
  uint64_t window_bytes = 64 << 20;  // sent and not yet acknowledged; at least one chunk
  uint32_t clients = 1;              // that send to the server at the same time
};

// One snapshot and one server. Each of the pool's threads is a worker with a stream of its own: it hashes
// chunks, and encodes and sends those that the server lacks, whichever there is to do (sending first). On a
// long way there are more workers, with threads of their own, that only send; the pool's then hash first.
// The caller's thread offers the hashes meanwhile. A chunk that the part names twice is offered and sent
// once.
//
// May be called again after an error: hashes are kept, and all else is asked of the server anew, which may
// have lost it.
class Uploader {
 public:
  // All must outlive the uploader.
  // `chooser` is asked, and learns from each upload, if the options say so.
  Uploader(const Snapshot* snapshot, const UploadOptions& options, ThreadPool* pool, CodecChooser* chooser,
           SaveCounters* counters);
  ~Uploader();

  // Returns OK when the server has acknowledged or held every chunk. Errors: the first that a call or an
  // acknowledgement gave. When it returns, no stream is open any more.
  absl::Status Upload(Connection* connection, const v1::SaveContext& save, const Deadline& deadline);
  // Sends these chunks, which the server turned out to lack. kInternal if one is not of this part.
  absl::Status SendAgain(const std::vector<Hash128>& hashes, Connection* connection,
                         const v1::SaveContext& save, const Deadline& deadline);

  // What new chunks are encoded with, after an Upload that returned OK. kDelta if the server has the
  // snapshot's base.
  CodecId codec() const;

  // All chunks' hashes in order: after an Upload that returned OK.
  std::vector<Hash128> Hashes() const;

 private:
  struct Job {
    enum Kind { kHash, kSend, kCollect, kStop };
    Kind kind = kStop;
    size_t chunk = 0;
  };
  // The server that an Upload talks to.
  struct Target {
    Connection* connection;
    v1::SaveContext save;
    Deadline deadline;
  };

  // For the choice of the saves to come.
  void Learn(uint64_t sent_bytes, double seconds);
  // How many workers, and what each may have on its way.
  void TakePlan(const Connection& connection);
  absl::Status Run(const Target& target);
  void Restart() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OfferAll(const Target& target);
  absl::Status Offer(const Target& target, const std::vector<size_t>& chunks);

  void Work(const Target& target, size_t worker);
  Job NextJob(size_t worker, uint64_t unacknowledged_bytes);
  void Hash(size_t chunk);
  absl::Status Send(const Target& target, size_t worker, size_t chunk, std::unique_ptr<PutStream>* stream);
  // What is stored of the chunk, if not its raw bytes: kRaw if these are best.
  CodecId Encode(size_t chunk, std::vector<std::byte>* to) const;
  bool MayBeDelta(size_t chunk) const;
  absl::Status Collect(PutStream* stream, bool wait);
  void SetStream(size_t worker, PutStream* stream);

  void Held(size_t chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HoldsAll() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return held_ == snapshot_->chunks.size(); }
  bool OfferIsDue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Records the first error and stops everything.
  void Fail(const absl::Status& status);

  const Snapshot* const snapshot_;
  const UploadOptions options_;
  ThreadPool* const pool_;
  CodecChooser* const chooser_;
  SaveCounters* const counters_;
  const Codec* codec_ = nullptr;  // constant while workers run
  const uint64_t largest_chunk_bytes_;
  const size_t hashers_;  // the first so many workers hash

  // Constant while workers run.
  size_t workers_ = 0;
  size_t senders_ = 0;         // the first so many workers send
  uint64_t window_bytes_ = 0;  // of each sender
  uint64_t body_bytes_ = 0;

  EncodeBuffers buffers_;

  mutable Mutex mu_;
  CondVar changed_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  size_t working_ ABSL_GUARDED_BY(mu_) = 0;               // workers that have not returned
  std::vector<PutStream*> streams_ ABSL_GUARDED_BY(mu_);  // by worker; nullptr: none is open
  size_t next_to_hash_ ABSL_GUARDED_BY(mu_) = 0;
  size_t hashed_ ABSL_GUARDED_BY(mu_) = 0;
  size_t held_ ABSL_GUARDED_BY(mu_) = 0;  // chunks that need nothing more
  std::vector<Hash128> hashes_ ABSL_GUARDED_BY(mu_);
  // Of what was hashed while no codec was in use.
  std::vector<std::optional<uint32_t>> raw_crcs_ ABSL_GUARDED_BY(mu_);
  std::vector<bool> was_sent_
      ABSL_GUARDED_BY(mu_);  // by us, in this save: not a duplicate, though the server holds it
  // Sent as deltas; and those of them that were refused, as the server does not hold their bases whole.
  absl::flat_hash_set<size_t> as_delta_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<size_t> not_as_delta_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Hash128, size_t> first_with_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> to_offer_ ABSL_GUARDED_BY(mu_);
  std::deque<size_t> to_send_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
