// A training rank's way to save and resume.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "esker/reader.h"
#include "esker/state.h"

namespace esker {

// What Save does while the save before it is still under way.
enum class InFlightPolicy {
  kWait,  // block until it ended (well or not), then go on
  kSkip,  // save nothing: the handle is done at once, with kCancelled
  kFail,  // likewise, with kFailedPrecondition
};

enum class Compression {
  kNone,
  kZstd,
  kPlanes,  // for floats: by byte planes, of which the exponents are compressed
  kAuto,    // kPlanes where that makes saves faster, else kNone: judged from save to save
  // kPlanes, and of what has changed little since an earlier save, only the difference from that. Takes twice
  // the staging memory, in which that save's bytes are kept, and needs keep_staging.
  kDelta,
};

struct CheckpointerOptions {
  std::string server;  // "host:port"
  std::string run;     // [a-z0-9][a-z0-9._-]{0,127}
  uint32_t rank = 0;
  uint32_t world_size = 1;

  // The same on all ranks of one start of the job, and new at each start: it makes the attempt, and fences
  // ranks of earlier starts. Empty: taken from ESKER_INCARNATION, else TORCHELASTIC_RUN_ID and
  // TORCHELASTIC_RESTART_COUNT, else SLURM_JOB_ID and SLURM_RESTART_COUNT, else, if world_size is 1, a random
  // one; else an error.
  std::string incarnation;

  InFlightPolicy in_flight = InFlightPolicy::kWait;
  Compression compression = Compression::kNone;
  Transport transport = Transport::kAuto;

  // Worker threads that copy the snapshot, hash, encode and upload; 0: as many as the machine has cores, at
  // most 8.
  int threads = 0;
  // Memory for encoded chunks on their way. The staging arena comes on top: one copy of this rank's state,
  // two with kDelta.
  uint64_t pipeline_bytes = 64 << 20;
  // Staging memory to allocate and touch in the background from the start, so that the first Save does not
  // pay for it. 0: the first Save allocates.
  uint64_t staging_bytes = 0;
  // Whether the staging memory is kept for the next Save. If not, it is given back as soon as the part is
  // durable, before the commit: for a process that saves the parts of many ranks, one after the other.
  bool keep_staging = true;
  // Raw bytes a chunk, a multiple of 4096, at most 4 MiB.
  uint64_t chunk_bytes = 4 << 20;

  // How long Open and Restore try to reach a server that does not answer.
  uint64_t connect_timeout_ms = 20'000;
  // How long one save may take from Save to commit before it is given up, servers restarting in between
  // included.
  uint64_t save_timeout_ms = 600'000;
};

// How far a save is.
struct SaveProgress {
  // kSealed: this rank's part is durable and reported; the commit needs no more of this process, unless the
  // server is started again before it: then the rank reports once more.
  enum class Phase { kUploading, kSealed, kCommitted, kFailed };
  Phase phase = Phase::kUploading;
  uint64_t raw_bytes = 0;           // of this rank
  uint64_t processed_bytes = 0;     // hashed, and held by the server: sent, or known before
  uint64_t sent_bytes = 0;          // to the server (or written by it from shared memory), encoded
  uint64_t deduplicated_bytes = 0;  // raw bytes that the server held already
  // Of raw_bytes, what this Checkpointer's save before had too, counted in whole chunks. Known once the part
  // is sealed. Nearly all of it: a copy is being saved, perhaps, that training no longer changes.
  uint64_t unchanged_bytes = 0;
  // How the payload goes to the server; kAuto as long as that is not known.
  Transport transport = Transport::kAuto;
};

// A save under way. Copyable; the save goes on if all handles are dropped. Thread-safe.
class SaveHandle {
 public:
  // Blocks until the checkpoint is committed (OK) or this save has failed: says why (which ranks did not
  // report, server, disk full …).
  absl::Status Wait() const;
  // The same, at most so long: kDeadlineExceeded if it is still under way.
  absl::Status WaitFor(uint64_t timeout_ms) const;
  bool Done() const;
  // kUnavailable with "under way" until Done; then Wait's result.
  absl::Status Result() const;
  SaveProgress Progress() const;
  uint64_t step() const;

  struct Shared;
  explicit SaveHandle(std::shared_ptr<Shared> shared);

 private:
  std::shared_ptr<Shared> shared_;
};

// Thread-safe, but Save calls of one Checkpointer are taken one after the other. Does not survive fork():
// open it in the process that uses it.
class Checkpointer {
 public:
  // Reaches the server and opens the run: from here on ranks with another incarnation can save nothing (P4).
  // Blocks at most connect_timeout_ms. Errors: kInvalidArgument, kUnavailable (says what was tried),
  // kPermissionDenied (a newer incarnation exists).
  static absl::StatusOr<std::unique_ptr<Checkpointer>> Open(const CheckpointerOptions& options);
  // Waits for the save under way, at most save_timeout_ms.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Copies the state into the staging arena and returns; everything else happens on worker threads, or in a
  // server on the same host: then the save goes on even if this process dies (SaveProgress::transport). The
  // caller may change its tensors from then on. Never fails because of the server: the handle says so; one
  // on the same host that hangs holds Save up for two seconds at most. An error here means that the state
  // itself is wrong (kInvalidArgument: which tensor, and why) or does not fit into memory
  // (kResourceExhausted); nothing was saved then. Every rank of the run must save the same step. Nothing is
  // visible until all have.
  absl::StatusOr<SaveHandle> Save(uint64_t step, const State& state);

  // This rank can't take part in the save of `step`, or gives it up: the save fails on all ranks at once,
  // with `reason` in their handles, instead of when its time has run out. A checkpoint that is committed
  // stays: kAlreadyExists. Blocks, but only for seconds if the server is not there: kUnavailable.
  absl::Status Abort(uint64_t step, const std::string& reason);

  // The latest committed step when the run was opened or at the last call of this; nothing if there is none.
  // Asks the server.
  absl::StatusOr<std::optional<uint64_t>> LatestStep();

  // Opens the checkpoint of `step`, or the latest, and fills the wanted boxes (see
  // CheckpointReader::Restore). Returns its step.
  absl::StatusOr<uint64_t> Restore(std::optional<uint64_t> step, const std::vector<TargetTensor>& tensors);

  // For more than that: items, what is stored, several calls on the same checkpoint.
  absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpoint(std::optional<uint64_t> step);

  // Committed checkpoints of the run, by step.
  absl::StatusOr<std::vector<CheckpointInfo>> List();

  uint64_t attempt() const;
  const CheckpointerOptions& options() const;

 private:
  class Impl;
  explicit Checkpointer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
