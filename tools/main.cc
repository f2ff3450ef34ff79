// The `esker` command: reads the command line, runs the chosen command, prints its result or error.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "format/base/duration.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "tools/cli.h"
#include "tools/exit_code.h"

namespace esker {
namespace {

void Configure(CLI::App* app, Cli* cli) {
  // At most one: a word that is no command is then named as such. That there is one, Main checks.
  app->require_subcommand(-1);
  app->fallthrough();  // global options may stand behind the command
  app->set_version_flag("--version", std::string("esker ") + ESKER_VERSION);
  app->add_option("--server", cli->server, "Address of eskerd, HOST:PORT")
      ->envname("ESKER_SERVER")
      ->capture_default_str();
  app->add_flag("--json", cli->json, "Print one JSON document on stdout instead of text");
  app->add_option("--timeout", cli->timeout, "How long to try to reach the server, e.g. 500ms or 30s")
      ->capture_default_str();
  app->footer(ExitCodeHelp());
  AddLsCommand(app, cli);
  AddShowCommand(app, cli);
  AddSaveCommand(app, cli);
  AddRestoreCommand(app, cli);
  AddVerifyCommand(app, cli);
  AddGcCommand(app, cli);
  AddPinCommands(app, cli);
  AddRmCommand(app, cli);
  AddStatusCommand(app, cli);
  AddDumpCommand(app, cli);
  AddBenchCommand(app, cli);
}

absl::Status RunCommand(Cli* cli) {
  ESKER_ASSIGN_OR_RETURN(const auto timeout, ParseDuration(cli->timeout));
  if (timeout.count() <= 0)
    return absl::InvalidArgumentError("--timeout 0: expected more than that, e.g. 10s");
  cli->timeout_ms = static_cast<uint64_t>(timeout.count());
  return cli->run();
}

// Prints what is left to print; the process's exit code.
int Finish(Cli* cli, const absl::Status& status) {
  const ExitCode code = ExitCodeOf(status);
  if (!status.ok()) {
    const std::string line = ErrorLine(status, cli->server);
    std::fflush(stdout);
    std::fprintf(stderr, "esker: %s\n", line.c_str());
    cli->result["error"] = {
        {"code", std::string(ExitCodeName(code))}, {"exit_code", static_cast<int>(code)}, {"message", line}};
  }
  if (cli->json) std::printf("%s\n", JsonText(cli->result, true).c_str());
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "esker: writing to stdout failed: the output is not complete\n");
    return static_cast<int>(ExitCode::kFailed);
  }
  if (cli->exit_at_once) std::_Exit(static_cast<int>(code));
  return static_cast<int>(code);
}

// The command line could not be read, so whether it asked for JSON is seen by hand.
int FinishUsage(Cli* cli, const std::string& message, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) cli->json = cli->json || std::strcmp(argv[i], "--json") == 0;
  return Finish(cli, absl::InvalidArgumentError(message + " (esker --help says more)"));
}

int Main(int argc, char** argv) {
  // gRPC's own log lines would stand among ours. Whoever wants them sets the variable.
  ::setenv("GRPC_VERBOSITY", "NONE", 0);
  Cli cli;
  CLI::App app(
      "Esker keeps checkpoints of training jobs: lists, saves, restores, verifies and collects them.",
      "esker");
  Configure(&app, &cli);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::Error& error) {
    return FinishUsage(&cli, error.what(), argc, argv);
  }
  if (!cli.run) return FinishUsage(&cli, "a command is required", argc, argv);
  absl::Status status;
  try {
    status = RunCommand(&cli);
  } catch (const std::exception& error) {  // of a library: out of memory, a file system's surprise
    status = absl::InternalError(error.what());
  }
  return Finish(&cli, status);
}

}  // namespace
}  // namespace esker

int main(int argc, char** argv) { return esker::Main(argc, argv); }
