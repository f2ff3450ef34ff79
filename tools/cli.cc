#include "tools/cli.h"

#include <map>

#include "format/base/status.h"

namespace esker {
namespace {

const std::map<std::string, Compression>& Compressions() {
  static const std::map<std::string, Compression> names = {{"none", Compression::kNone},
                                                           {"zstd", Compression::kZstd},
                                                           {"planes", Compression::kPlanes},
                                                           {"auto", Compression::kAuto}};
  return names;
}

const std::map<std::string, Transport>& Transports() {
  static const std::map<std::string, Transport> names = {
      {"auto", Transport::kAuto}, {"shm", Transport::kSharedMemory}, {"grpc", Transport::kGrpc}};
  return names;
}

template <typename Value>
std::string KeyOf(Value value, const std::map<std::string, Value>& names) {
  for (const auto& [name, named] : names) {
    if (named == value) return name;
  }
  ESKER_CHECK(false);
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
                   "none (default); planes, for floats; zstd, for what repeats itself; auto: planes where "
                   "that makes saves faster")
      ->transform(CLI::CheckedTransformer(Compressions()))
      ->option_text("none|planes|zstd|auto");
}

std::string CompressionName(Compression compression) { return KeyOf(compression, Compressions()); }

void AddTransportOption(CLI::App* command, Transport* transport) {
  command
      ->add_option("--transport", *transport,
                   "shm, memory shared with a server on this host; grpc; auto (default), shm where it can be")
      ->transform(CLI::CheckedTransformer(Transports()))
      ->option_text("auto|shm|grpc");
}

std::string TransportName(Transport transport) { return KeyOf(transport, Transports()); }

std::optional<uint64_t> StepOf(const CheckpointName& name) {
  if (name.latest) return std::nullopt;
  return name.step;
}

}  // namespace esker
