// esker pin RUN@STEP [--note TEXT], esker unpin RUN@STEP, esker rm RUN@STEP [--even-if-pinned]
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"
#include "tools/cli.h"
#include "tools/records.h"

namespace esker {
namespace {

struct PinOptions {
  std::string name;
  std::string note;
};

absl::Status SetPinned(Cli* cli, const PinOptions& options, bool pinned) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  ESKER_ASSIGN_OR_RETURN(const v1::CheckpointRecord record,
                         admin->PinCheckpoint(name.run, StepOf(name), pinned, options.note));
  cli->result["checkpoint"] = CheckpointJson(record);
  if (!cli->json) {
    std::printf("%s is %s\n", NameOf(record).c_str(),
                pinned ? "pinned: retention never takes it" : "no longer pinned");
  }
  return absl::OkStatus();
}

absl::Status Pin(Cli* cli, const PinOptions& options) { return SetPinned(cli, options, true); }
absl::Status Unpin(Cli* cli, const PinOptions& options) { return SetPinned(cli, options, false); }

struct RmOptions {
  std::string name;
  bool even_if_pinned = false;
};

absl::Status Rm(Cli* cli, const RmOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  uint64_t step = name.step;
  if (name.latest) {
    ESKER_ASSIGN_OR_RETURN(const CheckpointManifest latest, admin->GetCheckpoint(name.run, std::nullopt));
    step = latest.record.step();
  }
  ESKER_RETURN_IF_ERROR(admin->DeleteCheckpoint(name.run, step, options.even_if_pinned));
  cli->result["deleted"] = {{"run", name.run}, {"step", step}};
  if (!cli->json) {
    std::printf("%s@%llu is deleted; the next garbage collection frees its space (esker gc does so now)\n",
                name.run.c_str(), static_cast<unsigned long long>(step));
  }
  return absl::OkStatus();
}

}  // namespace

void AddPinCommands(CLI::App* app, Cli* cli) {
  auto pin = std::make_shared<PinOptions>();
  CLI::App* command = AddCommand(app, cli, "pin", "Keep a checkpoint whatever retention says", pin, &Pin);
  command->add_option("checkpoint", pin->name, kCheckpointHelp)->required();
  command->add_option("--note", pin->note, "Why, for those who read the list");

  auto unpin = std::make_shared<PinOptions>();
  command = AddCommand(app, cli, "unpin", "Leave a pinned checkpoint to retention again", unpin, &Unpin);
  command->add_option("checkpoint", unpin->name, kCheckpointHelp)->required();
}

void AddRmCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<RmOptions>();
  CLI::App* command = AddCommand(app, cli, "rm", "Delete a checkpoint", options, &Rm);
  command->add_option("checkpoint", options->name, kCheckpointHelp)->required();
  command->add_flag("--even-if-pinned", options->even_if_pinned, "Delete it even if it is pinned");
}

}  // namespace esker
