// What the commands of `esker` share: the global options, how a command is registered, and how it hands over
// its result. main.cc puts them together; each command has its own cmd_*.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/admin.h"
#include "esker/checkpointer.h"
#include "esker/reader.h"
#include "format/names.h"
#include "tools/output.h"

namespace esker {

struct Cli {
  // Options of every command.
  std::string server = "127.0.0.1:7070";
  bool json = false;
  std::string timeout = "5s";
  uint64_t timeout_ms = 5'000;  // of `timeout`, once the command line was read

  // The command that was chosen. It prints its text to stdout unless `json` is set, and then fills `result`.
  std::function<absl::Status()> run;
  // With --json, printed when the command is done, with an "error" added if it failed.
  Json result = Json::object();
  // Threads are at work that can't be waited for: end the process without destroying what they use.
  bool exit_at_once = false;
};

// Registers `name`: `run` is called with the options that the command line set in `options`.
template <typename Options>
CLI::App* AddCommand(CLI::App* app, Cli* cli, const std::string& name, const std::string& help,
                     std::shared_ptr<Options> options, absl::Status (*run)(Cli*, const Options&)) {
  CLI::App* command = app->add_subcommand(name, help);
  command->callback([cli, options, run] { cli->run = [cli, options, run] { return run(cli, *options); }; });
  return command;
}

// Connections for a command. They connect at the first call.
absl::StatusOr<std::unique_ptr<AdminClient>> ConnectAdmin(const Cli& cli);
absl::StatusOr<std::unique_ptr<Reader>> ConnectReader(const Cli& cli);

// --compress, and the name of what it chose.
void AddCompressOption(CLI::App* command, Compression* compression);
std::string CompressionName(Compression compression);
// --transport, and the name of what it chose or of what was used.
void AddTransportOption(CLI::App* command, Transport* transport);
std::string TransportName(Transport transport);

// The step to ask a Reader for.
std::optional<uint64_t> StepOf(const CheckpointName& name);

// What RUN@STEP options say in --help.
inline constexpr const char* kCheckpointHelp = "RUN@STEP or RUN@latest";

// One function per command or group of commands.
void AddLsCommand(CLI::App* app, Cli* cli);
void AddShowCommand(CLI::App* app, Cli* cli);
void AddSaveCommand(CLI::App* app, Cli* cli);
void AddRestoreCommand(CLI::App* app, Cli* cli);
void AddVerifyCommand(CLI::App* app, Cli* cli);
void AddGcCommand(CLI::App* app, Cli* cli);
void AddPinCommands(CLI::App* app, Cli* cli);  // pin, unpin
void AddRmCommand(CLI::App* app, Cli* cli);
void AddStatusCommand(CLI::App* app, Cli* cli);
void AddDumpCommand(CLI::App* app, Cli* cli);
void AddBenchCommand(CLI::App* app, Cli* cli);         // bench, bench save, bench restore
void AddBenchCodecCommand(CLI::App* bench, Cli* cli);  // bench codec
void AddBenchStallCommand(CLI::App* app, CLI::App* bench, Cli* cli);
void AddBenchCommitCommand(CLI::App* app, CLI::App* bench, Cli* cli);

}  // namespace esker
