// Reading checkpoints without being a rank: what exists, what is in it, and its bytes. The restore CLI and
// inference jobs use it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "esker/state.h"

namespace esker {

// How payload gets to a server and back.
enum class Transport {
  kAuto,          // memory that both share if the server is on this host, else gRPC
  kSharedMemory,  // that, or an error
  kGrpc,
};

struct ReaderOptions {
  std::string server;  // "host:port"
  // How long to try to reach a server that does not answer, for each call.
  uint64_t connect_timeout_ms = 20'000;
  // Worker threads that fetch, decode, verify and copy; 0: as many as the machine has cores, at most 8.
  int threads = 0;
  Transport transport = Transport::kAuto;
};

struct CheckpointInfo {
  std::string run;
  uint64_t step = 0;
  uint64_t attempt = 0;
  uint32_t world_size = 0;
  int64_t committed_unix_ms = 0;
  uint64_t raw_bytes = 0;         // of the state
  uint64_t stored_bytes = 0;      // after the codec
  uint64_t new_stored_bytes = 0;  // of these, what no earlier checkpoint had
  uint64_t unchanged_bytes = 0;   // of raw_bytes, what each rank's save before had too
  bool pinned = false;
};

struct TensorInfo {
  std::string name;
  ElementType type;
  std::vector<uint64_t> shape;
  uint32_t shards = 0;  // how many are stored, replicas included
};

struct ItemInfo {
  uint32_t rank = 0;
  std::string name;
  uint64_t bytes = 0;
};

// Progress of a restore: bytes that are verified and in place, of all. Called from worker threads, not too
// often.
using ProgressCallback = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

struct RestoreRequest {
  // Filled in place. Unless Restore returns OK their content is unspecified.
  std::vector<TargetTensor> tensors;
  // Whose shards to take first where several ranks hold the same elements: the caller's own rank spreads
  // readers over replicas.
  uint32_t preferred_rank = 0;
  ProgressCallback progress;
};

// One committed checkpoint, open for reading. While it is open, garbage collection takes nothing of it.
// Thread-safe.
class CheckpointReader {
 public:
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  const CheckpointInfo& info() const;

  // Sorted by name. Reads the layouts of all ranks on first use.
  absl::StatusOr<std::vector<TensorInfo>> Tensors();
  // The boxes of `tensor` that `rank` stored; empty if it stored none.
  absl::StatusOr<std::vector<TensorBox>> StoredBy(uint32_t rank);
  // Byte items of all ranks, by rank and name.
  absl::StatusOr<std::vector<ItemInfo>> Items();

  // Fills the wanted boxes. Every byte was checked against the hash taken when it was saved. Blocks. Errors:
  // kInvalidArgument (box outside the tensor, wrong dtype or shape: says which), kNotFound (no such tensor),
  // kDataLoss (missing or damaged: names run, step, rank, tensor, chunk), kUnavailable (server). Reads only
  // chunks that hold wanted bytes, each once.
  absl::Status Restore(const RestoreRequest& request);

  // How the payload of the last Restore came; kAuto: there was none yet, or it came both ways. A few
  // megabytes go through gRPC even from a server on this host.
  Transport transport() const;

  // A byte item of a rank. kNotFound if the rank stored none of that name.
  absl::StatusOr<std::string> ReadItem(uint32_t rank, const std::string& name);

  class Impl;
  explicit CheckpointReader(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

// A connection for reading. Thread-safe.
class Reader {
 public:
  // Does not connect yet: the first call does.
  static absl::StatusOr<std::unique_ptr<Reader>> Open(const ReaderOptions& options);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Committed checkpoints, by step. An unknown run is kNotFound.
  absl::StatusOr<std::vector<CheckpointInfo>> List(const std::string& run);

  // The checkpoint of `step`, or the latest. kNotFound says what there is instead. Must not outlive the
  // reader.
  absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpoint(const std::string& run,
                                                                   std::optional<uint64_t> step);

 private:
  class Impl;
  explicit Reader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
