// The ranks of `esker bench`: processes of their own, each with its share of the state, that the benchmark
// tells what to do, all at the same moment.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "esker/checkpointer.h"

namespace esker {

struct BenchRanksOptions {
  uint32_t ranks = 4;
  uint64_t bytes_per_rank = 0;  // a multiple of kBenchRowBytes
  std::string run;
  std::string incarnation;
  Compression compression = Compression::kNone;
  Transport transport = Transport::kAuto;
  uint64_t connect_timeout_ms = 10'000;
};

// What a rank's share consists of: rows of tensors that all ranks share.
inline constexpr uint64_t kBenchRowBytes = 8192;

enum class BenchOp : uint32_t {
  kConnect,  // to `server`
  kReopen,   // close the Checkpointer, and open another: its staging memory is touched from then on
  kFill,     // the state with random bytes of seed `argument`
  kSave,     // the state as step `argument`, and wait for the commit
  kCopy,     // one memcpy of the state into touched memory, by as many threads as Save uses
  kWipe,     // the state, so that a restore has to bring it back
  kRestore,  // step `argument` into the state
  kCheck,    // that the state is that of seed `argument`
  kSendTcp,  // rank 0: its state, again and again, to port `argument` of this host until the port is closed
};

// How one rank fared. Times are seconds of CLOCK_MONOTONIC, which all processes share.
struct BenchTiming {
  double begin_s = 0;
  double returned_s = 0;  // kSave: when Save gave the state back to the caller
  double end_s = 0;
  double cpu_s = 0;  // of the rank's process, user and system
  uint64_t peak_rss_bytes = 0;
  Transport transport = Transport::kAuto;  // how the payload went, or came
};

// Not thread-safe.
class BenchRanks {
 public:
  // Forks the ranks: before the process has a second thread, and before it uses gRPC. They die with it.
  static absl::StatusOr<std::unique_ptr<BenchRanks>> Fork(const BenchRanksOptions& options);
  ~BenchRanks();
  BenchRanks(const BenchRanks&) = delete;
  BenchRanks& operator=(const BenchRanks&) = delete;

  // Has all ranks do `op` at the same time, and waits for all. The first rank's error, if one failed.
  absl::StatusOr<std::vector<BenchTiming>> Do(BenchOp op, uint64_t argument = 0);
  absl::Status Connect(const std::string& server);

 private:
  struct Rank {
    pid_t pid = -1;
    int socket = -1;
  };

  BenchRanks() = default;
  absl::StatusOr<std::vector<BenchTiming>> DoAt(BenchOp op, uint64_t argument, const std::string& server);

  std::vector<Rank> ranks_;
};

}  // namespace esker
