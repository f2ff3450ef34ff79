// esker bench save|restore [--size BYTES] [--ranks N] [--runs N] [--compress none|zstd|planes]
//                          [--transport auto|shm|grpc] [--dir DIR]
//
// What a run is: ranks of their own processes save (or restore) their random state at the same moment; right
// before and after, a bare loop writes (or reads) as much on the same disk. One run ahead of the timed ones
// is not counted: it brings staging memory and segments to the state that every later save of a job finds
// them in.
#include <cstdio>

#include "format/base/status.h"
#include "tools/bench_report.h"
#include "tools/bench_session.h"
#include "tools/cli.h"

namespace esker {
namespace {

// One timed run, with the means of what the limits gave before and after it.
struct SaveRun {
  BenchSave save;
  BenchCopy copy;
  double limit_gbps = 0;
  double tcp_limit_gbps = 0;
};

struct RestoreRun {
  BenchRestore restore;
  double limit_gbps = 0;
};

template <typename Run, typename Get>
std::vector<double> Each(const std::vector<Run>& runs, const Get& get) {
  std::vector<double> values;
  for (const Run& run : runs) values.push_back(get(run));
  return values;
}

// Of a directory that is not here, and of what was not measured, nothing is known.
template <typename Run, typename Get>
std::vector<double> EachIf(bool known, const std::vector<Run>& runs, const Get& get) {
  return known ? Each(runs, get) : std::vector<double>();
}

BenchCopy Mean(const BenchCopy& a, const BenchCopy& b) {
  return {.seconds = (a.seconds + b.seconds) / 2, .cpu_s = (a.cpu_s + b.cpu_s) / 2};
}

void Describe(Cli* cli, const BenchOptions& options, const char* command) {
  cli->result["command"] = command;
  cli->result["ranks"] = options.ranks;
  cli->result["runs"] = options.runs;
  cli->result["compress"] = CompressionName(options.compression);
}

// What comes after the figures.
void Conclude(Cli* cli, const BenchOptions& options, const BenchSession& session, const BenchSave& save,
              bool limit_known) {
  session.AddSpace(save, &cli->result);
  if (cli->json) return;
  std::printf("%s raw, %s stored, %u ranks, %d runs; server: %s, peak memory %s\n",
              HumanBytes(save.raw_bytes).c_str(), HumanBytes(save.stored_bytes).c_str(), options.ranks,
              options.runs, session.disk_engine().c_str(),
              HumanBytes(session.server_peak_rss_bytes()).c_str());
  if (!limit_known) {
    std::printf(
        "The server's directory is not on this machine: --dir names one of the same disk to compare with.\n");
  }
}

absl::StatusOr<std::vector<SaveRun>> MeasureSaves(BenchSession* session, const BenchOptions& options) {
  ESKER_RETURN_IF_ERROR(session->Save().status());
  std::vector<SaveRun> runs;
  ESKER_ASSIGN_OR_RETURN(double limit_before, session->WriteLimitGbps());
  for (int i = 0; i < options.runs; ++i) {
    SaveRun run;
    ESKER_ASSIGN_OR_RETURN(const BenchCopy copy_before, session->Copy());
    ESKER_ASSIGN_OR_RETURN(run.save, session->Save());
    ESKER_ASSIGN_OR_RETURN(const BenchCopy copy_after, session->Copy());
    run.copy = Mean(copy_before, copy_after);
    ESKER_ASSIGN_OR_RETURN(const double limit_after, session->WriteLimitGbps());
    run.limit_gbps = (limit_before + limit_after) / 2;
    limit_before = limit_after;
    if (run.save.transport == Transport::kGrpc) {
      ESKER_ASSIGN_OR_RETURN(run.tcp_limit_gbps, session->TcpLimitGbps());
    }
    runs.push_back(run);
  }
  return runs;
}

absl::Status RunSaveBench(Cli* cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const auto session, BenchSession::Open(*cli, options));
  const absl::StatusOr<std::vector<SaveRun>> runs = MeasureSaves(session.get(), options);
  ESKER_RETURN_IF_ERROR(session->End(runs.status()));
  const double gigabytes = session->gigabytes();
  const BenchSave& last = runs->back().save;
  const bool limit = runs->front().limit_gbps > 0;
  const bool tcp = runs->front().tcp_limit_gbps > 0;
  const auto gbps = [&](const SaveRun& run) { return gigabytes / run.save.seconds; };
  Describe(cli, options, "save");
  cli->result["transport"] = TransportName(last.transport);
  cli->result["disk_engine"] = session->disk_engine();
  ReportFigures(
      cli, "save",
      {{"durable_gbps", "GB/s, durable", Each(*runs, gbps)},
       {"limit_gbps", "GB/s, bare disk",
        EachIf(limit, *runs, [](const auto& run) { return run.limit_gbps; })},
       {"ratio", "ratio", EachIf(limit, *runs, [&](const auto& run) { return gbps(run) / run.limit_gbps; })},
       {"tcp_limit_gbps", "GB/s, TCP to the disk",
        EachIf(tcp, *runs, [](const auto& run) { return run.tcp_limit_gbps; })},
       {"tcp_ratio", "ratio to that",
        EachIf(tcp, *runs, [&](const auto& run) { return gbps(run) / run.tcp_limit_gbps; })},
       {"stall_over_memcpy", "stall over memcpy",
        Each(*runs, [](const auto& run) { return run.save.stall_s / run.copy.seconds; })},
       {"stall_ms", "stall, ms", Each(*runs, [](const auto& run) { return run.save.stall_s * 1e3; })},
       {"memcpy_ms", "memcpy, ms", Each(*runs, [](const auto& run) { return run.copy.seconds * 1e3; })},
       {"cpu_s_per_gb", "CPU-s per GB",
        Each(*runs, [&](const auto& run) { return run.save.cpu_s / gigabytes; })},
       {"cpu_s_per_gb_beyond_copy", "of it beyond the memcpy",
        Each(*runs, [&](const auto& run) { return (run.save.cpu_s - run.copy.cpu_s) / gigabytes; })}});
  Conclude(cli, options, *session, last, limit);
  return absl::OkStatus();
}

// What is restored, with the memcpy that its stall is compared with.
struct Restored {
  BenchSave save;
  BenchCopy copy;
  std::vector<RestoreRun> runs;
};

absl::StatusOr<Restored> MeasureRestores(BenchSession* session, const BenchOptions& options) {
  Restored restored;
  ESKER_RETURN_IF_ERROR(session->Save().status());
  ESKER_ASSIGN_OR_RETURN(restored.save, session->Save());
  ESKER_ASSIGN_OR_RETURN(restored.copy, session->Copy());
  ESKER_RETURN_IF_ERROR(session->Restore().status());
  ESKER_ASSIGN_OR_RETURN(double limit_before, session->ReadLimitGbps());
  for (int i = 0; i < options.runs; ++i) {
    ESKER_ASSIGN_OR_RETURN(const BenchRestore restore, session->Restore());
    ESKER_ASSIGN_OR_RETURN(const double limit_after, session->ReadLimitGbps());
    restored.runs.push_back({restore, (limit_before + limit_after) / 2});
    limit_before = limit_after;
  }
  return restored;
}

absl::Status RunRestoreBench(Cli* cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const auto session, BenchSession::Open(*cli, options));
  const absl::StatusOr<Restored> restored = MeasureRestores(session.get(), options);
  ESKER_RETURN_IF_ERROR(session->End(restored.status()));
  const std::vector<RestoreRun>& runs = restored->runs;
  const double gigabytes = session->gigabytes();
  const bool limit = runs.front().limit_gbps > 0;
  const auto gbps = [&](const RestoreRun& run) { return gigabytes / run.restore.seconds; };
  Describe(cli, options, "restore");
  cli->result["transport"] = TransportName(runs.back().restore.transport);
  cli->result["disk_engine"] = session->disk_engine();
  ReportFigures(
      cli, "restore",
      {{"durable_gbps", "GB/s, verified", Each(runs, gbps)},
       {"limit_gbps", "GB/s, bare disk", EachIf(limit, runs, [](const auto& run) { return run.limit_gbps; })},
       {"ratio", "ratio", EachIf(limit, runs, [&](const auto& run) { return gbps(run) / run.limit_gbps; })},
       {"stall_over_memcpy",
        "stall of the save over memcpy",
        {restored->save.stall_s / restored->copy.seconds}},
       {"stall_ms", "stall of the save, ms", {restored->save.stall_s * 1e3}},
       {"memcpy_ms", "memcpy, ms", {restored->copy.seconds * 1e3}},
       {"cpu_s_per_gb", "CPU-s per GB",
        Each(runs, [&](const auto& run) { return run.restore.cpu_s / gigabytes; })}});
  Conclude(cli, options, *session, restored->save, limit);
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App* app, Cli* cli) {
  CLI::App* bench = app->add_subcommand("bench", "Measure Esker against what the machine gives without it");
  bench->require_subcommand(1);
  AddBench(app, bench, cli, "save", "Measure a save, from its beginning to the durable commit", {},
           RunSaveBench);
  AddBench(app, bench, cli, "restore", "Measure a restore, every byte verified", {}, RunRestoreBench);
  AddBenchStallCommand(app, bench, cli);
  AddBenchCommitCommand(app, bench, cli);
  AddBenchCodecCommand(bench, cli);
}

}  // namespace esker
