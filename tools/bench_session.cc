#include "tools/bench_session.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "server/io/disk.h"
#include "server/io/raw_bandwidth.h"

namespace esker {
namespace {

constexpr uint32_t kMaxRanks = 64;
// More than that tells no more about a disk.
constexpr uint64_t kMaxLimitBytes = uint64_t{2} << 30;
constexpr const char* kRun = "esker-bench";

double Longest(const std::vector<BenchTiming>& timings, double BenchTiming::*end) {
  double longest = 0;
  for (const BenchTiming& timing : timings) longest = std::max(longest, timing.*end - timing.begin_s);
  return longest;
}

// From the first rank's beginning to the last one's end.
double Span(const std::vector<BenchTiming>& timings) {
  double begin = timings[0].begin_s;
  double end = timings[0].end_s;
  for (const BenchTiming& timing : timings) {
    begin = std::min(begin, timing.begin_s);
    end = std::max(end, timing.end_s);
  }
  return end - begin;
}

double CpuSum(const std::vector<BenchTiming>& timings) {
  double sum = 0;
  for (const BenchTiming& timing : timings) sum += timing.cpu_s;
  return sum;
}

// What all ranks used; kAuto if they differ.
Transport CommonTransport(const std::vector<BenchTiming>& timings) {
  for (const BenchTiming& timing : timings) {
    if (timing.transport != timings[0].transport) return Transport::kAuto;
  }
  return timings[0].transport;
}

// A directory that is on this machine and can be written to.
bool IsWritableDirectory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
         ::access(path.c_str(), W_OK | X_OK) == 0;
}

std::string ScratchDirectory(const BenchOptions& options) {
  if (!options.directory.empty()) return options.directory;
  const char* temporary = std::getenv("TMPDIR");
  return temporary != nullptr && *temporary != '\0' ? temporary : "/tmp";
}

absl::StatusOr<BenchRanksOptions> RanksOptions(const Cli& cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const uint64_t size, ParseBytes(options.size));
  BenchRanksOptions ranks;
  ranks.ranks = options.ranks;
  ranks.bytes_per_rank = size / options.ranks / kBenchRowBytes * kBenchRowBytes;
  if (ranks.bytes_per_rank == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--size ", options.size, ": expected at least ",
                                                   kBenchRowBytes, " bytes for each rank"));
  }
  ranks.run = kRun;
  ranks.incarnation = absl::StrFormat("esker-bench-%08x%08x", std::random_device()(), std::random_device()());
  ranks.compression = options.compression;
  ranks.transport = options.transport;
  ranks.connect_timeout_ms = cli.timeout_ms;
  return ranks;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BenchSession>> BenchSession::Open(const Cli& cli,
                                                                 const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const BenchRanksOptions rank_options, RanksOptions(cli, options));
  // First of all: they must be forked before there are threads, and gRPC and the guard have some.
  ESKER_ASSIGN_OR_RETURN(auto ranks, BenchRanks::Fork(rank_options));
  std::unique_ptr<BenchSession> session(new BenchSession());
  session->ranks_ = std::move(ranks);
  session->bytes_ = rank_options.bytes_per_rank * options.ranks;
  ESKER_RETURN_IF_ERROR(session->Connect(cli, options));
  return session;
}

absl::Status BenchSession::Connect(const Cli& cli, const BenchOptions& options) {
  if (options.own_server) ESKER_RETURN_IF_ERROR(own_server_.Start(ScratchDirectory(options)));
  const std::string server = options.own_server ? own_server_.address() : cli.server;
  ESKER_ASSIGN_OR_RETURN(admin_, AdminClient::Make(server, cli.timeout_ms));
  ESKER_ASSIGN_OR_RETURN(const v1::StatusResponse status, admin_->Status());
  disk_engine_ = status.disk_engine();
  // The bare disk is measured where the server keeps its data, if that is here, or where --dir says.
  if (options.own_server) {
    limit_directory_ = own_server_.data_directory();
  } else if (!options.directory.empty()) {
    limit_directory_ = options.directory;
  } else if (IsWritableDirectory(status.data_directory())) {
    limit_directory_ = status.data_directory();
  }
  const absl::StatusOr<v1::ListCheckpointsResponse> left = admin_->ListCheckpoints(kRun, false);
  if (left.ok() && left->checkpoints_size() > 0) step_ = left->checkpoints().rbegin()->step();
  seed_ = std::random_device()();
  return ranks_->Connect(server);
}

absl::StatusOr<std::vector<BenchTiming>> BenchSession::Do(BenchOp op, uint64_t argument) {
  ESKER_ASSIGN_OR_RETURN(std::vector<BenchTiming> timings, ranks_->Do(op, argument));
  for (const BenchTiming& timing : timings) {
    rank_peak_rss_bytes_ = std::max(rank_peak_rss_bytes_, timing.peak_rss_bytes);
  }
  return timings;
}

absl::StatusOr<double> BenchSession::ServerCpuSeconds() {
  ESKER_ASSIGN_OR_RETURN(const v1::StatusResponse status, admin_->Status());
  server_peak_rss_bytes_ = std::max(server_peak_rss_bytes_, uint64_t{status.peak_rss_bytes()});
  return status.cpu_seconds();
}

absl::Status BenchSession::DeleteLast() {
  if (!saved_) return absl::OkStatus();
  saved_ = false;
  ESKER_RETURN_IF_ERROR(admin_->DeleteCheckpoint(kRun, step_, true));
  return admin_->CollectGarbage(kRun, std::nullopt, false).status();
}

absl::Status BenchSession::End(const absl::Status& measured) {
  const absl::Status cleaned = own_server_.address().empty() ? DeleteLast() : absl::OkStatus();
  return measured.ok() ? cleaned : measured;
}

absl::Status BenchSession::Reopen() { return Do(BenchOp::kReopen).status(); }

absl::StatusOr<BenchSave> BenchSession::Save() {
  ESKER_RETURN_IF_ERROR(Do(BenchOp::kFill, ++seed_).status());
  ESKER_RETURN_IF_ERROR(DeleteLast());
  ESKER_ASSIGN_OR_RETURN(const double cpu_before_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> timings, Do(BenchOp::kSave, ++step_));
  saved_ = true;
  ESKER_ASSIGN_OR_RETURN(const double cpu_after_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const CheckpointManifest checkpoint, admin_->GetCheckpoint(kRun, step_));
  return BenchSave{.seconds = Span(timings),
                   .stall_s = Longest(timings, &BenchTiming::returned_s),
                   .cpu_s = CpuSum(timings) + cpu_after_s - cpu_before_s,
                   .transport = CommonTransport(timings),
                   .raw_bytes = checkpoint.record.raw_bytes(),
                   .stored_bytes = checkpoint.record.stored_bytes()};
}

absl::StatusOr<BenchRestore> BenchSession::Restore() {
  ESKER_RETURN_IF_ERROR(Do(BenchOp::kWipe).status());
  ESKER_ASSIGN_OR_RETURN(const double cpu_before_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> timings, Do(BenchOp::kRestore, step_));
  ESKER_ASSIGN_OR_RETURN(const double cpu_after_s, ServerCpuSeconds());
  ESKER_RETURN_IF_ERROR(Do(BenchOp::kCheck, seed_).status());
  return BenchRestore{.seconds = Span(timings),
                      .cpu_s = CpuSum(timings) + cpu_after_s - cpu_before_s,
                      .transport = CommonTransport(timings)};
}

absl::StatusOr<BenchCopy> BenchSession::Copy() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> timings, Do(BenchOp::kCopy));
  return BenchCopy{.seconds = Longest(timings, &BenchTiming::end_s), .cpu_s = CpuSum(timings)};
}

// --- what the machine gives without Esker
// ---------------------------------------------------------------------------------------------

uint64_t BenchSession::LimitBytes() const {
  return std::max(std::min(bytes_, kMaxLimitBytes) / kBlockBytes * kBlockBytes, kBlockBytes);
}

void BenchSession::AddSpace(const BenchSave& save, Json* result) const {
  (*result)["server_peak_rss_bytes"] = server_peak_rss_bytes_;
  (*result)["rank_peak_rss_bytes"] = rank_peak_rss_bytes_;
  (*result)["bytes_raw"] = save.raw_bytes;
  (*result)["bytes_stored"] = save.stored_bytes;
}

absl::StatusOr<double> BenchSession::WriteLimitGbps() {
  if (limit_directory_.empty()) return 0;
  ESKER_ASSIGN_OR_RETURN(const double bytes_per_second,
                         MeasureWriteBandwidth(limit_directory_, LimitBytes()));
  return bytes_per_second / 1e9;
}

absl::StatusOr<double> BenchSession::ReadLimitGbps() {
  if (limit_directory_.empty()) return 0;
  ESKER_ASSIGN_OR_RETURN(const double bytes_per_second, MeasureReadBandwidth(limit_directory_, LimitBytes()));
  return bytes_per_second / 1e9;
}

absl::StatusOr<double> BenchSession::TcpLimitGbps() {
  if (limit_directory_.empty()) return 0;
  ESKER_ASSIGN_OR_RETURN(const auto receiver, TcpToDisk::Open(limit_directory_, LimitBytes()));
  auto received = std::async(std::launch::async, [&receiver] { return receiver->Receive(); });
  const absl::Status sent = Do(BenchOp::kSendTcp, receiver->port()).status();
  const absl::StatusOr<double> bytes_per_second = received.get();
  ESKER_RETURN_IF_ERROR(sent);
  ESKER_RETURN_IF_ERROR(bytes_per_second.status());
  return *bytes_per_second / 1e9;
}

absl::StatusOr<double> BenchSession::SmallWriteLimitSeconds() {
  if (limit_directory_.empty()) return 0;
  ESKER_ASSIGN_OR_RETURN(const double bytes_per_second,
                         MeasureWriteBandwidth(limit_directory_, kBlockBytes, kBlockBytes, 1));
  return static_cast<double>(kBlockBytes) / bytes_per_second;
}

// --- the command line
// -----------------------------------------------------------------------------------------------------------------

CLI::App* AddBench(CLI::App* app, CLI::App* bench, Cli* cli, const std::string& name, const std::string& help,
                   const BenchOptions& defaults, absl::Status (*run)(Cli*, const BenchOptions&)) {
  auto options = std::make_shared<BenchOptions>(defaults);
  CLI::App* command = bench->add_subcommand(name, help);
  command->callback([app, cli, options, run] {
    // A server that the environment names is for other commands: a benchmark must be sent there on purpose.
    options->own_server =
        std::none_of(app->parse_order().begin(), app->parse_order().end(),
                     [](const CLI::Option* option) { return option->get_name() == "--server"; });
    cli->run = [cli, options, run] { return run(cli, *options); };
  });
  command->add_option("--size", options->size, "The state of all ranks, e.g. 500MB or 2GiB")
      ->capture_default_str();
  command->add_option("--ranks", options->ranks, "Processes that save at the same time")
      ->check(CLI::Range(uint32_t{1}, kMaxRanks))
      ->capture_default_str();
  command->add_option("--runs", options->runs, "Timed runs, after one that does not count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  AddCompressOption(command, &options->compression);
  AddTransportOption(command, &options->transport);
  command->add_option(
      "--dir", options->directory,
      "Where the benchmark's own server keeps its data, and the bare disk is measured (default: TMPDIR)");
  command->footer(
      "Without --server it starts a server of its own, and removes it at the end. GB are 1e9 bytes.");
  return command;
}

}  // namespace esker
