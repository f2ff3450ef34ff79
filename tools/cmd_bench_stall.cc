// esker bench stall: how long Save keeps the loop.
//
// What a run is: the job starts, and trains for a while (sleeps, here) before its first save; then comes a
// second one. Each is compared with one memcpy of the state into touched memory by as many threads, before
// and after.
#include <chrono>
#include <thread>

#include "format/base/status.h"
#include "tools/bench_report.h"
#include "tools/bench_session.h"
#include "tools/cli.h"

namespace esker {
namespace {

// The least time to a job's first save: a minute would be more like it. Staging memory is touched meanwhile.
constexpr auto kIdleBase = std::chrono::seconds(1);
constexpr double kIdleSecondsPerGigabyte = 4;

struct StallRun {
  double first_s = 0;
  double later_s = 0;
  double copy_s = 0;
};

void TrainFor(const BenchSession& session) {
  std::this_thread::sleep_for(kIdleBase +
                              std::chrono::duration<double>(kIdleSecondsPerGigabyte * session.gigabytes()));
}

absl::StatusOr<StallRun> StallOnce(BenchSession* session, BenchSave* last) {
  ESKER_RETURN_IF_ERROR(session->Reopen());
  TrainFor(*session);
  ESKER_ASSIGN_OR_RETURN(const BenchCopy before, session->Copy());
  ESKER_ASSIGN_OR_RETURN(const BenchSave first, session->Save());
  ESKER_ASSIGN_OR_RETURN(*last, session->Save());
  ESKER_ASSIGN_OR_RETURN(const BenchCopy after, session->Copy());
  return StallRun{
      .first_s = first.stall_s, .later_s = last->stall_s, .copy_s = (before.seconds + after.seconds) / 2};
}

absl::StatusOr<std::vector<StallRun>> MeasureStalls(BenchSession* session, int count, BenchSave* last) {
  std::vector<StallRun> runs;
  for (int i = 0; i <= count; ++i) {
    ESKER_ASSIGN_OR_RETURN(const StallRun run, StallOnce(session, last));
    if (i > 0) runs.push_back(run);
  }
  return runs;
}

absl::Status RunStallBench(Cli* cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const auto session, BenchSession::Open(*cli, options));
  BenchSave last;
  const absl::StatusOr<std::vector<StallRun>> runs = MeasureStalls(session.get(), options.runs, &last);
  ESKER_RETURN_IF_ERROR(session->End(runs.status()));
  const auto each = [&](const auto& get) {
    std::vector<double> values;
    for (const StallRun& run : *runs) values.push_back(get(run));
    return values;
  };
  Json& result = cli->result;
  result["command"] = "stall";
  result["ranks"] = options.ranks;
  result["runs"] = options.runs;
  result["compress"] = CompressionName(options.compression);
  result["transport"] = TransportName(last.transport);
  ReportFigures(
      cli, "stall",
      {{"first_stall_over_memcpy", "first save, over memcpy",
        each([](const StallRun& run) { return run.first_s / run.copy_s; })},
       {"stall_over_memcpy", "later save, over memcpy",
        each([](const StallRun& run) { return run.later_s / run.copy_s; })},
       {"first_stall_ms", "first save, ms", each([](const auto& run) { return run.first_s * 1e3; })},
       {"stall_ms", "later save, ms", each([](const auto& run) { return run.later_s * 1e3; })},
       {"memcpy_ms", "memcpy, ms", each([](const auto& run) { return run.copy_s * 1e3; })}});
  session->AddSpace(last, &result);
  return absl::OkStatus();
}

}  // namespace

void AddBenchStallCommand(CLI::App* app, CLI::App* bench, Cli* cli) {
  AddBench(app, bench, cli, "stall", "Measure how long Save keeps the loop, against a memcpy",
           {.size = "1GiB", .ranks = 1, .runs = 5}, RunStallBench);
}

}  // namespace esker
