// esker bench save|restore [--size BYTES] [--ranks N] [--runs N] [--compress none|zstd|planes] [--dir DIR]
//
// What a run is: ranks of their own processes save (or restore) their random state at the same moment, over
// gRPC; right before and after, a bare loop writes (or reads) as much on the same disk. One run ahead of the
// timed ones is not counted: it brings staging memory and segments to the state that every later save of a
// job finds them in.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "server/io/disk.h"
#include "server/io/raw_bandwidth.h"
#include "tools/bench_ranks.h"
#include "tools/bench_server.h"
#include "tools/cli.h"
#include "tools/interrupt.h"

namespace esker {
namespace {

constexpr uint32_t kMaxRanks = 64;
// More than that tells no more about a disk.
constexpr uint64_t kMaxLimitBytes = uint64_t{2} << 30;
constexpr const char* kRun = "esker-bench";

struct BenchOptions {
  bool restore = false;
  std::string size = "2GiB";
  uint32_t ranks = 4;
  int runs = 3;
  Compression compression = Compression::kNone;
  std::string directory;
  bool own_server = true;
};

// One timed run.
struct Run {
  double gbps = 0;
  double limit_gbps = 0;  // 0: not known
  double stall_s = 0;
  double copy_s = 0;
  double cpu_s_per_gb = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;

  double ratio() const { return gbps / limit_gbps; }
  double stall_over_memcpy() const { return stall_s / copy_s; }
};

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

// A directory that is on this machine and can be written to.
bool IsWritableDirectory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
         ::access(path.c_str(), W_OK | X_OK) == 0;
}

class Bench {
 public:
  Bench(const Cli& cli, const BenchOptions& options, BenchRanks* ranks, uint64_t bytes,
        const std::string& server)
      : cli_(cli), options_(options), ranks_(ranks), bytes_(bytes), server_(server) {}

  // `limit_directory`: where to measure what the disk gives; empty: where the server keeps its data, if that
  // is here.
  absl::Status Prepare(const std::string& limit_directory);
  absl::StatusOr<std::vector<Run>> Measure();
  // Removes from the server what the benchmark saved.
  absl::Status CleanUp();

  uint64_t server_peak_rss_bytes() const { return server_peak_rss_bytes_; }
  const std::string& disk_engine() const { return disk_engine_; }

 private:
  absl::StatusOr<Run> SaveOnce();
  absl::StatusOr<Run> RestoreOnce();
  absl::Status DeleteLast();
  absl::StatusOr<double> ServerCpuSeconds();
  absl::StatusOr<double> LimitGbps();
  absl::StatusOr<double> CopySeconds();

  double gigabytes() const { return static_cast<double>(bytes_) / 1e9; }

  // Constant after Prepare.
  const Cli& cli_;
  const BenchOptions& options_;
  BenchRanks* const ranks_;
  const uint64_t bytes_;
  const std::string server_;
  std::unique_ptr<AdminClient> admin_;
  std::string limit_directory_;
  std::string disk_engine_;

  uint64_t step_ = 0;  // the last that was saved
  uint64_t seed_ = 0;  // of the state that was saved last
  bool saved_ = false;
  uint64_t server_peak_rss_bytes_ = 0;
};

absl::Status Bench::Prepare(const std::string& limit_directory) {
  ESKER_ASSIGN_OR_RETURN(admin_, AdminClient::Make(server_, cli_.timeout_ms));
  ESKER_ASSIGN_OR_RETURN(const v1::StatusResponse status, admin_->Status());
  disk_engine_ = status.disk_engine();
  if (!limit_directory.empty()) {
    limit_directory_ = limit_directory;
  } else if (IsWritableDirectory(status.data_directory())) {
    limit_directory_ = status.data_directory();
  }
  const absl::StatusOr<v1::ListCheckpointsResponse> left = admin_->ListCheckpoints(kRun, false);
  if (left.ok() && left->checkpoints_size() > 0) step_ = left->checkpoints().rbegin()->step();
  seed_ = std::random_device()();
  return ranks_->Connect(server_);
}

absl::StatusOr<double> Bench::ServerCpuSeconds() {
  ESKER_ASSIGN_OR_RETURN(const v1::StatusResponse status, admin_->Status());
  server_peak_rss_bytes_ = std::max(server_peak_rss_bytes_, uint64_t{status.peak_rss_bytes()});
  return status.cpu_seconds();
}

absl::StatusOr<double> Bench::LimitGbps() {
  if (limit_directory_.empty()) return 0;
  const uint64_t bytes = std::max(std::min(bytes_, kMaxLimitBytes) / kBlockBytes * kBlockBytes, kBlockBytes);
  const auto measure = [&] {
    return options_.restore ? MeasureReadBandwidth(limit_directory_, bytes)
                            : MeasureWriteBandwidth(limit_directory_, bytes);
  };
  ESKER_ASSIGN_OR_RETURN(const double bytes_per_second, measure());
  return bytes_per_second / 1e9;
}

absl::StatusOr<double> Bench::CopySeconds() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> copies, ranks_->Do(BenchOp::kCopy));
  return Longest(copies, &BenchTiming::end_s);
}

absl::Status Bench::DeleteLast() {
  if (!saved_) return absl::OkStatus();
  saved_ = false;
  ESKER_RETURN_IF_ERROR(admin_->DeleteCheckpoint(kRun, step_, true));
  return admin_->CollectGarbage(kRun, std::nullopt, false).status();
}

absl::StatusOr<Run> Bench::SaveOnce() {
  // New bytes, of which the server holds none.
  ESKER_RETURN_IF_ERROR(ranks_->Do(BenchOp::kFill, ++seed_).status());
  ESKER_RETURN_IF_ERROR(DeleteLast());
  ESKER_ASSIGN_OR_RETURN(const double copy_before_s, CopySeconds());
  ESKER_ASSIGN_OR_RETURN(const double cpu_before_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> timings, ranks_->Do(BenchOp::kSave, ++step_));
  saved_ = true;
  ESKER_ASSIGN_OR_RETURN(const double cpu_after_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const double copy_after_s, CopySeconds());
  ESKER_ASSIGN_OR_RETURN(const CheckpointManifest checkpoint, admin_->GetCheckpoint(kRun, step_));
  return Run{.gbps = gigabytes() / Span(timings),
             .stall_s = Longest(timings, &BenchTiming::returned_s),
             .copy_s = (copy_before_s + copy_after_s) / 2,
             .cpu_s_per_gb = (CpuSum(timings) + cpu_after_s - cpu_before_s) / gigabytes(),
             .raw_bytes = checkpoint.record.raw_bytes(),
             .stored_bytes = checkpoint.record.stored_bytes()};
}

absl::StatusOr<Run> Bench::RestoreOnce() {
  ESKER_RETURN_IF_ERROR(ranks_->Do(BenchOp::kWipe).status());
  ESKER_ASSIGN_OR_RETURN(const double cpu_before_s, ServerCpuSeconds());
  ESKER_ASSIGN_OR_RETURN(const std::vector<BenchTiming> timings, ranks_->Do(BenchOp::kRestore, step_));
  ESKER_ASSIGN_OR_RETURN(const double cpu_after_s, ServerCpuSeconds());
  ESKER_RETURN_IF_ERROR(ranks_->Do(BenchOp::kCheck, seed_).status());
  return Run{.gbps = gigabytes() / Span(timings),
             .cpu_s_per_gb = (CpuSum(timings) + cpu_after_s - cpu_before_s) / gigabytes()};
}

absl::StatusOr<std::vector<Run>> Bench::Measure() {
  ESKER_RETURN_IF_ERROR(SaveOnce().status());
  Run saved;
  if (options_.restore) {
    // What is restored; its stall is reported, as a restore has none.
    ESKER_ASSIGN_OR_RETURN(saved, SaveOnce());
    ESKER_RETURN_IF_ERROR(RestoreOnce().status());
  }
  std::vector<Run> runs;
  ESKER_ASSIGN_OR_RETURN(double limit_before, LimitGbps());
  for (int i = 0; i < options_.runs; ++i) {
    ESKER_ASSIGN_OR_RETURN(Run run, options_.restore ? RestoreOnce() : SaveOnce());
    ESKER_ASSIGN_OR_RETURN(const double limit_after, LimitGbps());
    run.limit_gbps = (limit_before + limit_after) / 2;
    limit_before = limit_after;
    if (options_.restore) {
      run.stall_s = saved.stall_s;
      run.copy_s = saved.copy_s;
      run.raw_bytes = saved.raw_bytes;
      run.stored_bytes = saved.stored_bytes;
    }
    runs.push_back(run);
  }
  return runs;
}

absl::Status Bench::CleanUp() { return DeleteLast(); }

// --- the report
// -------------------------------------------------------------------------------------------------------

struct Spread {
  double min = 0;
  double median = 0;
  double max = 0;
};

template <typename Get>
Spread SpreadOf(const std::vector<Run>& runs, const Get& get) {
  std::vector<double> values;
  for (const Run& run : runs) values.push_back(get(run));
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {values.front(), median, values.back()};
}

struct Figure {
  const char* name;
  const char* label;
  double (*get)(const Run&);
};

constexpr Figure kFigures[] = {
    {"durable_gbps", "GB/s, durable", [](const Run& run) { return run.gbps; }},
    {"limit_gbps", "GB/s, bare disk", [](const Run& run) { return run.limit_gbps; }},
    {"ratio", "ratio", [](const Run& run) { return run.ratio(); }},
    {"stall_over_memcpy", "stall over memcpy", [](const Run& run) { return run.stall_over_memcpy(); }},
    {"stall_ms", "stall, ms", [](const Run& run) { return run.stall_s * 1e3; }},
    {"memcpy_ms", "memcpy, ms", [](const Run& run) { return run.copy_s * 1e3; }},
    {"cpu_s_per_gb", "CPU-s per GB", [](const Run& run) { return run.cpu_s_per_gb; }},
};

// Of a directory that is not here nothing is known.
bool IsKnown(const Figure& figure, const std::vector<Run>& runs) {
  const std::string name = figure.name;
  return (name != "limit_gbps" && name != "ratio") || runs[0].limit_gbps > 0;
}

void Report(Cli* cli, const BenchOptions& options, const Bench& bench, const std::vector<Run>& runs) {
  Json& result = cli->result;
  result["command"] = options.restore ? "restore" : "save";
  result["ranks"] = options.ranks;
  result["runs"] = runs.size();
  result["compress"] = CompressionName(options.compression);
  result["disk_engine"] = bench.disk_engine();
  Table table({{options.restore ? "restore" : "save"},
               {"min", Align::kRight},
               {"median", Align::kRight},
               {"max", Align::kRight}});
  Json spread = Json::object();
  for (const Figure& figure : kFigures) {
    if (!IsKnown(figure, runs)) {
      result[figure.name] = nullptr;
      continue;
    }
    const Spread of = SpreadOf(runs, figure.get);
    result[figure.name] = of.median;
    spread[figure.name] = {{"min", of.min}, {"median", of.median}, {"max", of.max}};
    std::string label = figure.label;
    if (options.restore && absl::EndsWith(label, "durable")) label = "GB/s, verified";
    table.Add({label, absl::StrFormat("%.3f", of.min), absl::StrFormat("%.3f", of.median),
               absl::StrFormat("%.3f", of.max)});
  }
  result["server_peak_rss_bytes"] = bench.server_peak_rss_bytes();
  result["bytes_raw"] = runs.back().raw_bytes;
  result["bytes_stored"] = runs.back().stored_bytes;
  result["spread"] = std::move(spread);
  if (cli->json) return;
  std::printf("%s%s raw, %s stored, %u ranks, %zu runs; server: %s, peak memory %s\n",
              table.ToString().c_str(), HumanBytes(runs.back().raw_bytes).c_str(),
              HumanBytes(runs.back().stored_bytes).c_str(), options.ranks, runs.size(),
              bench.disk_engine().c_str(), HumanBytes(bench.server_peak_rss_bytes()).c_str());
  if (runs[0].limit_gbps == 0) {
    std::printf(
        "The server's directory is not on this machine: --dir names one of the same disk to compare with.\n");
  }
}

// --- putting it together
// ----------------------------------------------------------------------------------------------

std::string ScratchDirectory(const BenchOptions& options) {
  if (!options.directory.empty()) return options.directory;
  const char* temporary = std::getenv("TMPDIR");
  return temporary != nullptr && *temporary != '\0' ? temporary : "/tmp";
}

absl::Status RunBench(Cli* cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const uint64_t size, ParseBytes(options.size));
  BenchRanksOptions rank_options;
  rank_options.ranks = options.ranks;
  rank_options.bytes_per_rank = size / options.ranks / kBenchRowBytes * kBenchRowBytes;
  if (rank_options.bytes_per_rank == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--size ", options.size, ": expected at least ",
                                                   kBenchRowBytes, " bytes for each rank"));
  }
  rank_options.run = kRun;
  rank_options.incarnation =
      absl::StrFormat("esker-bench-%08x%08x", std::random_device()(), std::random_device()());
  rank_options.compression = options.compression;
  rank_options.connect_timeout_ms = cli->timeout_ms;
  // First of all: they must be forked before there are threads, and gRPC has some.
  ESKER_ASSIGN_OR_RETURN(const auto ranks, BenchRanks::Fork(rank_options));

  BenchServer own_server;
  const InterruptGuard guard([&own_server] { own_server.Stop(); });
  if (options.own_server) ESKER_RETURN_IF_ERROR(own_server.Start(ScratchDirectory(options)));
  const std::string server = options.own_server ? own_server.address() : cli->server;
  Bench bench(*cli, options, ranks.get(), rank_options.bytes_per_rank * options.ranks, server);
  ESKER_RETURN_IF_ERROR(bench.Prepare(options.own_server ? own_server.data_directory() : options.directory));
  const absl::StatusOr<std::vector<Run>> runs = bench.Measure();
  const absl::Status cleaned = options.own_server ? absl::OkStatus() : bench.CleanUp();
  ESKER_RETURN_IF_ERROR(runs.status());
  ESKER_RETURN_IF_ERROR(cleaned);
  Report(cli, options, bench, *runs);
  return absl::OkStatus();
}

void AddDirection(CLI::App* app, CLI::App* bench, Cli* cli, const std::string& name, const std::string& help,
                  bool restore) {
  auto options = std::make_shared<BenchOptions>();
  options->restore = restore;
  CLI::App* command = bench->add_subcommand(name, help);
  command->callback([app, cli, options] {
    // A server that the environment names is for other commands: a benchmark must be sent there on purpose.
    options->own_server =
        std::none_of(app->parse_order().begin(), app->parse_order().end(),
                     [](const CLI::Option* option) { return option->get_name() == "--server"; });
    cli->run = [cli, options] { return RunBench(cli, *options); };
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
  command->add_option(
      "--dir", options->directory,
      "Where the benchmark's own server keeps its data, and the bare disk is measured (default: TMPDIR)");
  command->footer(
      "Without --server it starts a server of its own, and removes it at the end. GB are 1e9 bytes.");
}

}  // namespace

void AddBenchCommand(CLI::App* app, Cli* cli) {
  CLI::App* bench = app->add_subcommand("bench", "Measure saves or restores against what the disk gives");
  bench->require_subcommand(1);
  AddDirection(app, bench, cli, "save", "Measure a save, from its beginning to the durable commit", false);
  AddDirection(app, bench, cli, "restore", "Measure a restore, every byte verified", true);
  AddBenchCodecCommand(bench, cli);
}

}  // namespace esker
