// esker ls [RUN] [--all]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "tools/cli.h"
#include "tools/records.h"

namespace esker {
namespace {

struct LsOptions {
  std::string run;
  bool all = false;
};

// The checkpoints of each run, asked for a few at a time: a run is one call.
absl::StatusOr<std::vector<v1::ListCheckpointsResponse>> ListAll(AdminClient* admin,
                                                                 const v1::ListRunsResponse& runs) {
  constexpr int kMaxThreads = 8;
  std::vector<v1::ListCheckpointsResponse> lists(static_cast<size_t>(runs.runs_size()));
  std::atomic<int> next{0};
  Mutex mu;
  absl::Status status;
  const auto work = [&] {
    for (int i = next++; i < runs.runs_size(); i = next++) {
      absl::StatusOr<v1::ListCheckpointsResponse> list = admin->ListCheckpoints(runs.runs(i).run(), false);
      if (list.ok()) {
        lists[static_cast<size_t>(i)] = *std::move(list);
      } else if (list.status().code() != absl::StatusCode::kNotFound) {
        MutexLock lock(&mu);
        status.Update(list.status());
        return;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < std::min(kMaxThreads, runs.runs_size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (!status.ok()) return status;
  return lists;
}

absl::Status ListRuns(Cli* cli, AdminClient* admin) {
  ESKER_ASSIGN_OR_RETURN(const v1::ListRunsResponse runs, admin->ListRuns());
  ESKER_ASSIGN_OR_RETURN(const auto lists, ListAll(admin, runs));
  Table table({{"run"},
               {"checkpoints", Align::kRight},
               {"latest", Align::kRight},
               {"committed"},
               {"raw", Align::kRight},
               {"attempt", Align::kRight},
               {"keeps"}});
  Json array = Json::array();
  for (int i = 0; i < runs.runs_size(); ++i) {
    const v1::RunRecord& run = runs.runs(i);
    const auto& checkpoints = lists[static_cast<size_t>(i)].checkpoints();
    const v1::CheckpointRecord* latest = checkpoints.empty() ? nullptr : &*checkpoints.rbegin();
    table.Add({run.run(), absl::StrCat(checkpoints.size()),
               latest == nullptr ? "-" : absl::StrCat(latest->step()),
               TimeAndAge(latest == nullptr ? 0 : latest->committed_unix_ms()),
               latest == nullptr ? "-" : HumanBytes(latest->raw_bytes()), absl::StrCat(run.attempt()),
               RetentionText(run.retention())});
    array.push_back({{"run", run.run()},
                     {"attempt", run.attempt()},
                     {"created_unix_ms", run.created_unix_ms()},
                     {"checkpoints", checkpoints.size()},
                     {"latest", latest == nullptr ? Json(nullptr) : CheckpointJson(*latest)},
                     {"retention", RetentionJson(run.retention())}});
  }
  cli->result["runs"] = std::move(array);
  if (!cli->json) {
    std::fputs(table.empty() ? "no runs yet: esker save, or a training job, makes the first\n"
                             : table.ToString().c_str(),
               stdout);
  }
  return absl::OkStatus();
}

std::string PinText(const v1::CheckpointRecord& record) {
  if (!record.pinned()) return "-";
  return record.pin_note().empty() ? "yes" : Printable(record.pin_note(), 40);
}

std::string SaveText(const v1::SaveStatusEntry& save) {
  if (save.record().state() == v1::SaveRecord::ABORTED) {
    return absl::StrCat("aborted: ", Printable(save.record().reason(), 80));
  }
  return absl::StrCat("saving: ", save.reported(), " of ", save.record().world_size(), " ranks are in");
}

absl::Status ListRun(Cli* cli, const LsOptions& options, AdminClient* admin) {
  ESKER_ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse list,
                         admin->ListCheckpoints(options.run, options.all));
  Table table({{"step", Align::kRight},
               {"committed"},
               {"ranks", Align::kRight},
               {"raw", Align::kRight},
               {"stored", Align::kRight},
               {"new", Align::kRight},
               {"attempt", Align::kRight},
               {"pinned"},
               {"state"}});
  Json checkpoints = Json::array();
  for (const v1::CheckpointRecord& record : list.checkpoints()) {
    table.Add({absl::StrCat(record.step()), TimeAndAge(record.committed_unix_ms()),
               absl::StrCat(record.world_size()), HumanBytes(record.raw_bytes()),
               HumanBytes(record.stored_bytes()), HumanBytes(record.new_stored_bytes()),
               absl::StrCat(record.attempt()), PinText(record), StateText(record)});
    checkpoints.push_back(CheckpointJson(record));
  }
  Json saves = Json::array();
  for (const v1::SaveStatusEntry& save : list.saves()) {
    const v1::SaveRecord& record = save.record();
    table.Add({absl::StrCat(record.step()), "-", absl::StrCat(record.world_size()), "-", "-", "-",
               absl::StrCat(record.attempt()), "-", SaveText(save)});
    saves.push_back(SaveJson(save));
  }
  cli->result["run"] = options.run;
  cli->result["checkpoints"] = std::move(checkpoints);
  if (options.all) cli->result["saves"] = std::move(saves);
  if (!cli->json) {
    std::fputs(table.empty() ? "no checkpoints\n" : table.ToString().c_str(), stdout);
  }
  return absl::OkStatus();
}

absl::Status Ls(Cli* cli, const LsOptions& options) {
  if (!options.run.empty()) ESKER_RETURN_IF_ERROR(ValidateRunName(options.run));
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  return options.run.empty() ? ListRuns(cli, admin.get()) : ListRun(cli, options, admin.get());
}

}  // namespace

void AddLsCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<LsOptions>();
  CLI::App* command = AddCommand(app, cli, "ls", "List runs, or the checkpoints of a run", options, &Ls);
  CLI::Option* run = command->add_option("run", options->run, "The run whose checkpoints to list");
  command
      ->add_flag("--all", options->all,
                 "Also saves under way and aborted ones, and checkpoints being deleted")
      ->needs(run);
}

}  // namespace esker
