#include "tools/bench_ranks.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/bytes.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/base/unique_fd.h"
#include "tools/files.h"

namespace esker {
namespace {

constexpr uint64_t kColumns = kBenchRowBytes / 2;  // of bf16
constexpr uint64_t kRowsPerTensor = 4096;          // of one rank: 32 MiB
constexpr size_t kMaxServerBytes = 256;
constexpr size_t kMaxErrorBytes = 1024;
constexpr size_t kSendBytes = 1 << 20;

struct Command {
  BenchOp op;
  uint64_t argument;
  char server[kMaxServerBytes];
};

struct Reply {
  BenchTiming timing;
  int32_t code;  // absl::StatusCode
  char error[kMaxErrorBytes];
};

double NowSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

rusage Usage() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage;
}

double CpuSeconds() {
  const rusage usage = Usage();
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Random bytes that no codec shrinks, a word at a time.
class RandomWords {
 public:
  explicit RandomWords(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15 | 1) {}
  uint64_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

 private:
  uint64_t state_;
};

// Anonymous memory, every page touched.
absl::StatusOr<MutableBytes> TouchedMemory(uint64_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return FileError(errno, StrCat("getting ", bytes, " bytes of memory"));
  std::memset(memory, 1, bytes);
  return MutableBytes(static_cast<std::byte*>(memory), bytes);
}

// Until the other end has enough.
absl::Status SendOverAndOver(uint16_t port, ByteView bytes) {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!socket || ::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return FileError(errno, StrCat("connecting to port ", port));
  }
  for (size_t at = 0;; at %= bytes.size()) {
    const size_t piece = std::min(kSendBytes, bytes.size() - at);
    const ssize_t sent = ::send(socket.get(), bytes.data() + at, piece, MSG_NOSIGNAL);
    if (sent < 0) return absl::OkStatus();
    at += static_cast<size_t>(sent);
  }
}

// One rank, in its own process.
class RankProcess {
 public:
  RankProcess(const BenchRanksOptions& options, uint32_t rank) : options_(options), rank_(rank) {}

  // Does what it is told until the socket is closed.
  void Serve(int socket) {
    Command command{};
    while (::recv(socket, &command, sizeof(command), 0) == sizeof(command)) {
      Reply reply{};
      const absl::Status status = Do(command, &reply.timing);
      reply.timing.peak_rss_bytes = static_cast<uint64_t>(Usage().ru_maxrss) << 10;
      reply.code = static_cast<int32_t>(status.code());
      absl::SNPrintF(reply.error, sizeof(reply.error), "%s", status.message());
      if (::send(socket, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply)) return;
    }
  }

 private:
  absl::Status Do(const Command& command, BenchTiming* timing) {
    switch (command.op) {
      case BenchOp::kConnect:
        return Connect(command.server);
      case BenchOp::kReopen:
        return Reopen();
      case BenchOp::kFill:
        return Fill(command.argument);
      case BenchOp::kSave:
        return Save(command.argument, timing);
      case BenchOp::kCopy:
        return Copy(timing);
      case BenchOp::kWipe:
        std::memset(state_.data(), 0xA5, state_.size());
        return absl::OkStatus();
      case BenchOp::kRestore:
        return Restore(command.argument, timing);
      case BenchOp::kCheck:
        return Check(command.argument);
      case BenchOp::kSendTcp:
        if (rank_ != 0) return absl::OkStatus();
        return SendOverAndOver(static_cast<uint16_t>(command.argument), state_);
    }
    return absl::InternalError("no such operation");
  }

  absl::Status Connect(const char* server) {
    ESKER_ASSIGN_OR_RETURN(state_, TouchedMemory(options_.bytes_per_rank));
    ESKER_ASSIGN_OR_RETURN(copy_, TouchedMemory(options_.bytes_per_rank));
    for (uint64_t begin = 0; begin < state_.size(); begin += kRowsPerTensor * kBenchRowBytes) {
      const uint64_t rows = std::min(kRowsPerTensor, (state_.size() - begin) / kBenchRowBytes);
      boxes_.push_back({.name = absl::StrFormat("layer.%04d.weight", boxes_.size()),
                        .type = ElementType::kBF16,
                        .shape = {rows * options_.ranks, kColumns},
                        .offset = {rows * rank_, 0},
                        .extent = {rows, kColumns}});
    }
    server_ = server;
    return Reopen();
  }

  absl::Status Reopen() {
    checkpointer_.reset();
    CheckpointerOptions options;
    options.server = server_;
    options.run = options_.run;
    options.rank = rank_;
    options.world_size = options_.ranks;
    options.incarnation = options_.incarnation;
    options.compression = options_.compression;
    options.transport = options_.transport;
    options.staging_bytes = state_.size();
    options.connect_timeout_ms = options_.connect_timeout_ms;
    ESKER_ASSIGN_OR_RETURN(checkpointer_, Checkpointer::Open(options));
    return absl::OkStatus();
  }

  RandomWords Words(uint64_t seed) const { return RandomWords(seed * 1'000'003 + rank_); }

  absl::Status Fill(uint64_t seed) {
    RandomWords words = Words(seed);
    for (uint64_t at = 0; at < state_.size(); at += sizeof(uint64_t))
      StoreLittle(state_.data() + at, words.Next());
    return absl::OkStatus();
  }

  absl::Status Check(uint64_t seed) {
    RandomWords words = Words(seed);
    for (uint64_t at = 0; at < state_.size(); at += sizeof(uint64_t)) {
      if (LoadLittle<uint64_t>(state_.data() + at) != words.Next()) {
        return absl::DataLossError(absl::StrCat("byte ", at, " of the restored state is not what was saved"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Save(uint64_t step, BenchTiming* timing) {
    State state;
    uint64_t at = 0;
    for (const TensorBox& box : boxes_) {
      state.tensors.push_back({box, state_.data() + at});
      at += box.bytes();
    }
    const double cpu_before = CpuSeconds();
    timing->begin_s = NowSeconds();
    ESKER_ASSIGN_OR_RETURN(const SaveHandle handle, checkpointer_->Save(step, state));
    timing->returned_s = NowSeconds();
    const absl::Status status = handle.Wait();
    timing->end_s = NowSeconds();
    timing->cpu_s = CpuSeconds() - cpu_before;
    timing->transport = handle.Progress().transport;
    return status;
  }

  absl::Status Restore(uint64_t step, BenchTiming* timing) {
    std::vector<TargetTensor> wanted;
    uint64_t at = 0;
    for (const TensorBox& box : boxes_) {
      wanted.push_back({box, state_.data() + at});
      at += box.bytes();
    }
    const double cpu_before = CpuSeconds();
    timing->begin_s = NowSeconds();
    ESKER_ASSIGN_OR_RETURN(const auto checkpoint, checkpointer_->OpenCheckpoint(step));
    const absl::Status status =
        checkpoint->Restore({.tensors = std::move(wanted), .preferred_rank = rank_, .progress = {}});
    timing->end_s = NowSeconds();
    timing->cpu_s = CpuSeconds() - cpu_before;
    timing->transport = checkpoint->transport();
    return status;
  }

  absl::Status Copy(BenchTiming* timing) {
    // As CheckpointerOptions::threads says of 0.
    const uint64_t threads = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
    const double cpu_before = CpuSeconds();
    timing->begin_s = NowSeconds();
    std::vector<std::thread> copying;
    for (uint64_t i = 0; i < threads; ++i) {
      const uint64_t begin = state_.size() * i / threads;
      const uint64_t end = state_.size() * (i + 1) / threads;
      copying.emplace_back(
          [this, begin, end] { std::memcpy(copy_.data() + begin, state_.data() + begin, end - begin); });
    }
    for (std::thread& thread : copying) thread.join();
    timing->end_s = NowSeconds();
    timing->cpu_s = CpuSeconds() - cpu_before;
    return absl::OkStatus();
  }

  const BenchRanksOptions options_;
  const uint32_t rank_;
  std::string server_;
  MutableBytes state_;  // as long as the process
  MutableBytes copy_;
  std::vector<TensorBox> boxes_;
  std::unique_ptr<Checkpointer> checkpointer_;
};

// In the child: never returns. `others` are the sockets of the ranks before it, which must close with the
// parent.
[[noreturn]] void RunRank(const BenchRanksOptions& options, uint32_t rank, int socket,
                          const std::vector<int>& others) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // A terminal sends these to every process of the command: the parent alone decides, and cleans up.
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, SIG_IGN);
  for (const int other : others) ::close(other);
  RankProcess process(options, rank);
  process.Serve(socket);
  ::_exit(0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BenchRanks>> BenchRanks::Fork(const BenchRanksOptions& options) {
  std::unique_ptr<BenchRanks> ranks(new BenchRanks());
  std::vector<int> parent_ends;
  for (uint32_t rank = 0; rank < options.ranks; ++rank) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
      return FileError(errno, "making a socket for a rank");
    }
    parent_ends.push_back(ends[0]);
    const pid_t pid = ::fork();
    if (pid == 0) RunRank(options, rank, ends[1], parent_ends);
    ::close(ends[1]);
    ranks->ranks_.push_back({pid, ends[0]});
    if (pid < 0) return FileError(errno, "starting a rank's process");
  }
  return ranks;
}

BenchRanks::~BenchRanks() {
  for (const Rank& rank : ranks_) {
    ::close(rank.socket);
    if (rank.pid < 0) continue;
    ::kill(rank.pid, SIGKILL);
    ::waitpid(rank.pid, nullptr, 0);
  }
}

absl::StatusOr<std::vector<BenchTiming>> BenchRanks::Do(BenchOp op, uint64_t argument) {
  return DoAt(op, argument, "");
}

absl::Status BenchRanks::Connect(const std::string& server) {
  if (server.size() >= kMaxServerBytes) return absl::InvalidArgumentError("the server's address is too long");
  return DoAt(BenchOp::kConnect, 0, server).status();
}

absl::StatusOr<std::vector<BenchTiming>> BenchRanks::DoAt(BenchOp op, uint64_t argument,
                                                          const std::string& server) {
  Command command{.op = op, .argument = argument, .server = {}};
  std::memcpy(command.server, server.c_str(), server.size() + 1);
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (::send(ranks_[i].socket, &command, sizeof(command), MSG_NOSIGNAL) != sizeof(command)) {
      return absl::InternalError(absl::StrCat("the process of rank ", i, " has ended"));
    }
  }
  std::vector<BenchTiming> timings;
  absl::Status status;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Reply reply{};
    if (::recv(ranks_[i].socket, &reply, sizeof(reply), 0) != sizeof(reply)) {
      return absl::InternalError(absl::StrCat("the process of rank ", i, " has ended (out of memory?)"));
    }
    if (reply.code != 0) {
      status.Update(absl::Status(static_cast<absl::StatusCode>(reply.code),
                                 absl::StrCat("rank ", i, ": ", reply.error)));
    }
    timings.push_back(reply.timing);
  }
  if (!status.ok()) return status;
  return timings;
}

}  // namespace esker
