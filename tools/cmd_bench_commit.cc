// esker bench commit: what a save takes that has next to no bytes to write, against one small write that is
// made durable on the same disk.
#include "format/base/status.h"
#include "tools/bench_report.h"
#include "tools/bench_session.h"
#include "tools/cli.h"

namespace esker {
namespace {

struct CommitRun {
  double seconds = 0;
  double limit_s = 0;
};

absl::StatusOr<std::vector<CommitRun>> MeasureCommits(BenchSession* session, int count, BenchSave* last) {
  ESKER_RETURN_IF_ERROR(session->Save().status());
  std::vector<CommitRun> runs;
  for (int i = 0; i < count; ++i) {
    ESKER_ASSIGN_OR_RETURN(*last, session->Save());
    ESKER_ASSIGN_OR_RETURN(const double limit_s, session->SmallWriteLimitSeconds());
    runs.push_back({last->seconds, limit_s});
  }
  return runs;
}

absl::Status RunCommitBench(Cli* cli, const BenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const auto session, BenchSession::Open(*cli, options));
  BenchSave last;
  const absl::StatusOr<std::vector<CommitRun>> runs = MeasureCommits(session.get(), options.runs, &last);
  ESKER_RETURN_IF_ERROR(session->End(runs.status()));
  const bool known = runs->front().limit_s > 0;
  BenchFigure commit{"commit_ms", "save to commit, ms", {}};
  BenchFigure limit{"limit_ms", "write and fdatasync, ms", {}};
  BenchFigure ratio{"ratio", "ratio", {}};
  for (const CommitRun& run : *runs) {
    commit.values.push_back(run.seconds * 1e3);
    if (!known) continue;
    limit.values.push_back(run.limit_s * 1e3);
    ratio.values.push_back(run.seconds / run.limit_s);
  }
  Json& result = cli->result;
  result["command"] = "commit";
  result["ranks"] = options.ranks;
  result["runs"] = options.runs;
  result["transport"] = TransportName(last.transport);
  ReportFigures(cli, "commit", {commit, limit, ratio});
  session->AddSpace(last, &result);
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommitCommand(CLI::App* app, CLI::App* bench, Cli* cli) {
  AddBench(app, bench, cli, "commit", "Measure saves of a tiny state, against a small durable write",
           {.size = "32KiB", .ranks = 4, .runs = 50}, RunCommitBench);
}

}  // namespace esker
