#include "tools/cli.h"

#include <map>

#include "format/base/status.h"

namespace esker {
namespace {

const std::map<std::string, Compression>& Compressions() {
  static const std::map<std::string, Compression> names = {
      {"none", Compression::kNone}, {"zstd", Compression::kZstd}, {"planes", Compression::kPlanes}};
  return names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AdminClient>> ConnectAdmin(const Cli& cli) {
  return AdminClient::Make(cli.server, cli.timeout_ms);
}

absl::StatusOr<std::unique_ptr<Reader>> ConnectReader(const Cli& cli) {
  return Reader::Open({.server = cli.server, .connect_timeout_ms = cli.timeout_ms});
}

void AddCompressOption(CLI::App* command, Compression* compression) {
  command
      ->add_option("--compress", *compression,
                   "none (default); planes, for floats; zstd, for what repeats itself")
      ->transform(CLI::CheckedTransformer(Compressions()))
      ->option_text("none|planes|zstd");
}

std::string CompressionName(Compression compression) {
  for (const auto& [name, value] : Compressions()) {
    if (value == compression) return name;
  }
  ESKER_CHECK(false);
}

std::optional<uint64_t> StepOf(const CheckpointName& name) {
  if (name.latest) return std::nullopt;
  return name.step;
}

}  // namespace esker
