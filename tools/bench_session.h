// What the benchmarks of saves and restores stand on: a server, ranks with their random state, and what the
// same machine gives without Esker.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/bench_ranks.h"
#include "tools/bench_server.h"
#include "tools/cli.h"
#include "tools/interrupt.h"

namespace esker {

struct BenchOptions {
  std::string size = "2GiB";
  uint32_t ranks = 4;
  int runs = 3;
  Compression compression = Compression::kNone;
  Transport transport = Transport::kAuto;
  std::string directory = {};
  bool own_server = true;
};

// The slowest rank's seconds, and the CPU seconds of all.
struct BenchCopy {
  double seconds = 0;
  double cpu_s = 0;
};

struct BenchSave {
  double seconds = 0;  // from the first rank's beginning to the last one's commit
  double stall_s = 0;  // of the rank that Save kept longest
  double cpu_s = 0;    // of all ranks and the server
  Transport transport = Transport::kAuto;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
};

struct BenchRestore {
  double seconds = 0;
  double cpu_s = 0;
  Transport transport = Transport::kAuto;
};

// Not thread-safe. Removes what it has made when it ends, also when the process is told to stop.
class BenchSession {
 public:
  // Before the process has a second thread, and before it uses gRPC: it forks the ranks.
  static absl::StatusOr<std::unique_ptr<BenchSession>> Open(const Cli& cli, const BenchOptions& options);

  // New random state, of which the server holds nothing, under the next step. The save before is deleted.
  absl::StatusOr<BenchSave> Save();
  // What was saved last, into memory that was wiped; every byte is compared.
  absl::StatusOr<BenchRestore> Restore();
  // One memcpy of the state into touched memory, by as many threads as Save uses.
  absl::StatusOr<BenchCopy> Copy();
  // Each rank opens a new Checkpointer, as if the job had been started just now.
  absl::Status Reopen();
  // Removes what was saved from a server that goes on running. `measured` if that is an error.
  absl::Status End(const absl::Status& measured);

  // GB/s of a bare loop on the server's disk; 0 if that is not on this machine.
  absl::StatusOr<double> WriteLimitGbps();
  absl::StatusOr<double> ReadLimitGbps();
  // GB/s of TCP between two processes, written to the same disk as it comes.
  absl::StatusOr<double> TcpLimitGbps();
  // Seconds of one small O_DIRECT write and an fdatasync.
  absl::StatusOr<double> SmallWriteLimitSeconds();

  uint64_t bytes() const { return bytes_; }
  double gigabytes() const { return static_cast<double>(bytes_) / 1e9; }
  // So far.
  uint64_t server_peak_rss_bytes() const { return server_peak_rss_bytes_; }
  // The keys that every benchmark's JSON ends with: peak memory so far, and the bytes of a save.
  void AddSpace(const BenchSave& save, Json* result) const;
  const std::string& disk_engine() const { return disk_engine_; }

 private:
  BenchSession() : guard_([this] { own_server_.Stop(); }) {}
  absl::Status Connect(const Cli& cli, const BenchOptions& options);
  absl::StatusOr<std::vector<BenchTiming>> Do(BenchOp op, uint64_t argument = 0);
  absl::StatusOr<double> ServerCpuSeconds();
  absl::Status DeleteLast();
  uint64_t LimitBytes() const;

  // Constant after Open. The ranks end before their server does.
  BenchServer own_server_;
  std::unique_ptr<BenchRanks> ranks_;
  const InterruptGuard guard_;
  uint64_t bytes_ = 0;
  std::unique_ptr<AdminClient> admin_;
  std::string limit_directory_;
  std::string disk_engine_;

  uint64_t step_ = 0;  // the last that was saved
  uint64_t seed_ = 0;  // of the state that was saved last
  bool saved_ = false;
  uint64_t server_peak_rss_bytes_ = 0;
  uint64_t rank_peak_rss_bytes_ = 0;
};

// Registers a benchmark that `run` runs. `app` is where --server is an option.
CLI::App* AddBench(CLI::App* app, CLI::App* bench, Cli* cli, const std::string& name, const std::string& help,
                   const BenchOptions& defaults, absl::Status (*run)(Cli*, const BenchOptions&));

}  // namespace esker
