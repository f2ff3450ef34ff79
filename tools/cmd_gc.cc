// esker gc [RUN] [--keep-last N] [--keep-every STEPS] [--keep-within DURATION] [--dry-run | --set-policy |
// --clear-policy]
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "format/base/duration.h"
#include "format/base/status.h"
#include "tools/cli.h"
#include "tools/records.h"

namespace esker {
namespace {

struct GcOptions {
  std::string run;
  uint64_t keep_last = 0;
  uint64_t keep_every = 0;
  std::string keep_within;
  bool dry_run = false;
  bool set_policy = false;
  bool clear_policy = false;
};

absl::StatusOr<v1::RetentionPolicy> PolicyOf(const GcOptions& options) {
  v1::RetentionPolicy policy;
  policy.set_keep_last(options.keep_last);
  policy.set_keep_every(options.keep_every);
  if (!options.keep_within.empty()) {
    ESKER_ASSIGN_OR_RETURN(const auto within, ParseDuration(options.keep_within));
    if (within.count() <= 0) {
      return absl::InvalidArgumentError("--keep-within 0 keeps nothing: expected more than that, e.g. 7d");
    }
    policy.set_keep_within_ms(static_cast<uint64_t>(within.count()));
  }
  return policy;
}

absl::Status StorePolicy(Cli* cli, const GcOptions& options, const v1::RetentionPolicy& policy) {
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  if (options.clear_policy) {
    ESKER_RETURN_IF_ERROR(admin->SetRetention(options.run, std::nullopt));
  } else {
    ESKER_RETURN_IF_ERROR(admin->SetRetention(options.run, policy));
  }
  cli->result["run"] = options.run;
  cli->result["retention"] = RetentionJson(policy);
  if (!cli->json && options.clear_policy) {
    std::printf("%s has no retention policy any more: nothing of it is deleted by itself\n",
                options.run.c_str());
  } else if (!cli->json) {
    std::printf("%s keeps, from now on and by itself: %s\n", options.run.c_str(),
                RetentionText(policy).c_str());
  }
  return absl::OkStatus();
}

void PrintCollected(const v1::CollectGarbageResponse& response, bool dry_run) {
  Table table({{"checkpoint"}, {"committed"}, {"raw", Align::kRight}, {"stored", Align::kRight}});
  for (const v1::CheckpointRecord& record : response.deleted()) {
    table.Add({NameOf(record), TimeAndAge(record.committed_unix_ms()), HumanBytes(record.raw_bytes()),
               HumanBytes(record.stored_bytes())});
  }
  if (!table.empty()) std::fputs(table.ToString().c_str(), stdout);
  std::printf("%d checkpoint%s %s\n", response.deleted_size(), response.deleted_size() == 1 ? "" : "s",
              dry_run ? "would be deleted; nothing was changed" : "deleted");
  for (const v1::CheckpointRecord& record : response.kept_by_reader()) {
    std::printf("%s is deleted, but an open restore still reads it: its space is freed later\n",
                NameOf(record).c_str());
  }
  if (dry_run) return;
  const v1::GarbageReport& report = response.report();
  std::printf(
      "freed: %s on disk, and %s in %llu emptied segments kept for new data (%llu parts, %llu chunks of "
      "%s)\n",
      HumanBytes(report.disk_bytes_freed()).c_str(), HumanBytes(report.recycled_bytes()).c_str(),
      static_cast<unsigned long long>(report.segments_recycled()),
      static_cast<unsigned long long>(report.parts_removed()),
      static_cast<unsigned long long>(report.chunks_removed()),
      HumanBytes(report.chunk_bytes_removed()).c_str());
}

absl::Status Collect(Cli* cli, const GcOptions& options, const v1::RetentionPolicy& policy) {
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  ESKER_ASSIGN_OR_RETURN(
      const v1::CollectGarbageResponse response,
      admin->CollectGarbage(options.run, HasRules(policy) ? std::optional(policy) : std::nullopt,
                            options.dry_run));
  Json deleted = Json::array();
  for (const v1::CheckpointRecord& record : response.deleted()) deleted.push_back(CheckpointJson(record));
  Json kept = Json::array();
  for (const v1::CheckpointRecord& record : response.kept_by_reader()) kept.push_back(CheckpointJson(record));
  cli->result["dry_run"] = options.dry_run;
  cli->result["deleted"] = std::move(deleted);
  cli->result["kept_by_reader"] = std::move(kept);
  cli->result["report"] = GarbageJson(response.report());
  if (!cli->json) PrintCollected(response, options.dry_run);
  return absl::OkStatus();
}

absl::Status Gc(Cli* cli, const GcOptions& options) {
  if (!options.run.empty()) ESKER_RETURN_IF_ERROR(ValidateRunName(options.run));
  ESKER_ASSIGN_OR_RETURN(const v1::RetentionPolicy policy, PolicyOf(options));
  if (options.clear_policy && HasRules(policy)) {
    return absl::InvalidArgumentError("--clear-policy takes no --keep-… rules: leave out one or the other");
  }
  if (options.set_policy && !HasRules(policy)) {
    return absl::InvalidArgumentError(
        "--set-policy needs at least one of --keep-last, --keep-every and --keep-within (--clear-policy "
        "removes it)");
  }
  if (options.set_policy || options.clear_policy) return StorePolicy(cli, options, policy);
  return Collect(cli, options, policy);
}

}  // namespace

void AddGcCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<GcOptions>();
  CLI::App* command = AddCommand(
      app, cli, "gc", "Delete old checkpoints by a retention policy, and free their space", options, &Gc);
  CLI::Option* run = command->add_option("run", options->run, "The run to collect (default: all)");
  const CLI::Range positive(uint64_t{1}, uint64_t{1} << 62);
  command->add_option("--keep-last", options->keep_last, "Keep the newest N checkpoints")->check(positive);
  command->add_option("--keep-every", options->keep_every, "Keep those whose step is a multiple of N")
      ->check(positive);
  command->add_option("--keep-within", options->keep_within,
                      "Keep those committed no longer ago, e.g. 12h or 7d");
  CLI::Option* dry = command->add_flag("--dry-run", options->dry_run, "Only say what would be deleted");
  CLI::Option* set =
      command->add_flag("--set-policy", options->set_policy,
                        "Store the rules as the run's policy, which the server applies by itself");
  CLI::Option* clear =
      command->add_flag("--clear-policy", options->clear_policy, "Remove the run's stored policy");
  set->needs(run)->excludes(dry)->excludes(clear);
  clear->needs(run)->excludes(dry);
  command->footer(
      "A checkpoint is kept if any rule keeps it. Without rules the runs' own policies are applied. Pinned "
      "checkpoints,\n"
      "the newest, and those being saved or restored are never taken.");
}

}  // namespace esker
