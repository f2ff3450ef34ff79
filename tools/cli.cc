#include "tools/cli.h"

namespace esker {

absl::StatusOr<std::unique_ptr<AdminClient>> ConnectAdmin(const Cli& cli) {
  return AdminClient::Make(cli.server, cli.timeout_ms);
}

absl::StatusOr<std::unique_ptr<Reader>> ConnectReader(const Cli& cli) {
  return Reader::Open({.server = cli.server, .connect_timeout_ms = cli.timeout_ms});
}

std::optional<uint64_t> StepOf(const CheckpointName& name) {
  if (name.latest) return std::nullopt;
  return name.step;
}

}  // namespace esker
