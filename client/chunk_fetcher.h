// Carries out a restore's plan: fetches its chunks, each once, from several sources at a time, and has them
// placed.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/chunk_placer.h"
#include "client/chunk_source.h"
#include "client/connection.h"
#include "client/read_lease.h"
#include "client/restore_plan.h"
#include "esker/reader.h"
#include "format/base/mutex.h"

namespace esker {

struct FetchOptions {
  int threads = 1;  // each has a source of its own, and checks, decodes and copies what comes
  Transport transport = Transport::kAuto;
  uint64_t timeout_ms = 0;    // without any progress, while the server is not reached
  std::string label;          // "run r, step s", for messages
  ProgressCallback progress;  // may be empty
};

// For one plan. Memory: kWindowBytes in all, and two chunks a thread.
class ChunkFetcher {
 public:
  // All must outlive the fetcher.
  ChunkFetcher(const RestorePlan* plan, Connection* connection, ReadLease* lease,
               const FetchOptions& options);

  // Blocks until every byte is in place and verified, or something is wrong for good: kDataLoss names run,
  // step, rank, tensor and chunk. A connection that is lost is made again, and only what is left is asked
  // for.
  absl::Status Run();

  // How the payload came; kAuto: none did yet, or it came both ways.
  Transport transport() const;

 private:
  static constexpr uint64_t kWindowBytes = 64 << 20;

  void Work(size_t worker);
  // Asks for chunks and places them, from one source, until none is left. `asked`: those that are not in
  // place, when it fails.
  absl::Status FetchSome(size_t worker, ChunkPlacer* placer, std::deque<size_t>* asked);
  absl::StatusOr<std::unique_ptr<ChunkSource>> OpenSource(size_t worker);
  absl::Status FetchFrom(ChunkSource* source, ChunkPlacer* placer, std::deque<size_t>* asked);
  absl::Status Ask(ChunkSource* source, std::deque<size_t>* asked, uint64_t* asked_bytes);
  absl::Status Take(const ChunkSource& source, const FetchedChunk& fetched, ChunkPlacer* placer);
  // Whether it is worth going on after this error, and then prepares it.
  absl::Status Recover(const absl::Status& error, size_t worker, int* tries_left);
  void Placed(uint64_t bytes, Transport transport);
  void Fail(const absl::Status& status);
  void SetSource(size_t worker, ChunkSource* source);

  const RestorePlan* const plan_;
  Connection* const connection_;
  ReadLease* const lease_;
  const FetchOptions options_;
  const int threads_;
  const uint64_t window_bytes_;  // of each source

  mutable Mutex mu_;
  absl::Status why_not_shared_ ABSL_GUARDED_BY(mu_);  // if it was tried
  bool came_shared_ ABSL_GUARDED_BY(mu_) = false;
  bool came_by_grpc_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::deque<size_t> left_ ABSL_GUARDED_BY(mu_);            // chunks that nobody has asked for
  std::vector<ChunkSource*> sources_ ABSL_GUARDED_BY(mu_);  // by worker
  // Since an error without progress after it.
  std::optional<Deadline> give_up_ ABSL_GUARDED_BY(mu_);

  Mutex progress_mu_;  // held during the callback
  uint64_t placed_bytes_ ABSL_GUARDED_BY(progress_mu_) = 0;
  uint64_t reported_bytes_ ABSL_GUARDED_BY(progress_mu_) = 0;
};

}  // namespace esker
