// eskerd's configuration: flags, and a TOML file with the same names. docs/operations.md describes each.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/coordinator/coordinator.h"
#include "server/rpc/rpc_options.h"
#include "server/store/store.h"

namespace esker {

// The version of this build, "1.2.3".
std::string_view EskerVersion();

struct ServerConfig {
  StoreOptions store;  // store.directory is the data directory
  CoordinatorOptions coordinator;
  RpcOptions rpc;
  std::string port_file;
  std::string users_file;
  std::string log_level = "info";
};

struct CommandLine {
  ServerConfig config;
  // Not empty: the user asked for help or the version. Print it and exit.
  std::string text;
};

// `arguments`: without the program's name. Reads the file named by --config; flags win over it.
// kInvalidArgument names the flag, or the file, line and key.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

}  // namespace esker
