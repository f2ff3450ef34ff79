// esker show RUN@STEP [--tensors] [--items]
#include <algorithm>
#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/codec.h"
#include "format/hash.h"
#include "tools/cli.h"
#include "tools/records.h"

namespace esker {
namespace {

// Ranks in the table; JSON has them all.
constexpr int kMaxRanksShown = 64;

struct ShowOptions {
  std::string name;
  bool tensors = false;
  bool items = false;
};

std::string Hex(const std::string& digest) {
  const absl::StatusOr<Hash128> hash = HashFromBytes(digest, "digest");
  return hash.ok() ? hash->ToHex() : "";
}

std::string ServersOf(const v1::Manifest& manifest, const v1::PartEntry& part) {
  return absl::StrJoin(part.servers(), ",", [&](std::string* text, uint32_t index) {
    absl::StrAppend(text, index < static_cast<uint32_t>(manifest.servers_size())
                              ? manifest.servers(static_cast<int>(index)).address()
                              : "?");
  });
}

// What the part's new chunks were encoded with.
std::string CodecText(uint32_t number) {
  const std::optional<CodecId> id = CodecFromNumber(number);
  return id.has_value() ? std::string(CodecName(*id)) : absl::StrCat("codec ", number);
}

Json ManifestJson(const v1::Manifest& manifest) {
  Json ranks = Json::array();
  for (const v1::PartEntry& part : manifest.parts()) {
    ranks.push_back({{"rank", part.rank()},
                     {"raw_bytes", part.raw_bytes()},
                     {"stored_bytes", part.stored_bytes()},
                     {"new_stored_bytes", part.new_stored_bytes()},
                     {"unchanged_bytes", part.unchanged_bytes()},
                     {"codec", CodecText(part.codec())},
                     {"part_digest", Hex(part.part_digest())},
                     {"layout_digest", Hex(part.layout_digest())},
                     {"servers", part.servers()}});
  }
  Json servers = Json::array();
  for (const v1::ServerInfo& server : manifest.servers()) {
    servers.push_back({{"id", server.id()}, {"address", server.address()}});
  }
  return {{"servers", std::move(servers)}, {"ranks", std::move(ranks)}};
}

void PrintCheckpoint(const v1::CheckpointRecord& record) {
  std::printf("%s\n", NameOf(record).c_str());
  std::printf("  committed  %s\n", TimeAndAge(record.committed_unix_ms()).c_str());
  std::printf("  took       %s\n",
              HumanDuration(record.committed_unix_ms() - record.begun_unix_ms()).c_str());
  std::printf("  attempt    %llu\n", static_cast<unsigned long long>(record.attempt()));
  std::printf("  raw        %s\n", HumanBytes(record.raw_bytes()).c_str());
  std::printf("  stored     %s, of which %s new\n", HumanBytes(record.stored_bytes()).c_str(),
              HumanBytes(record.new_stored_bytes()).c_str());
  std::printf("  unchanged  %s of the raw bytes were in the save before too%s\n",
              HumanBytes(record.unchanged_bytes()).c_str(), IsStale(record) ? ": stale" : "");
  std::printf("  manifest   %s\n", Hex(record.manifest_digest()).c_str());
  if (record.pinned()) {
    const std::string& note = record.pin_note();
    std::printf("  pinned     %s\n", note.empty() ? "yes" : Printable(note).c_str());
  }
}

void PrintRanks(const v1::Manifest& manifest) {
  Table table({{"rank", Align::kRight},
               {"raw", Align::kRight},
               {"stored", Align::kRight},
               {"new", Align::kRight},
               {"codec"},
               {"part"},
               {"servers"}});
  for (int i = 0; i < std::min(manifest.parts_size(), kMaxRanksShown); ++i) {
    const v1::PartEntry& part = manifest.parts(i);
    table.Add({absl::StrCat(part.rank()), HumanBytes(part.raw_bytes()), HumanBytes(part.stored_bytes()),
               HumanBytes(part.new_stored_bytes()), CodecText(part.codec()), Hex(part.part_digest()),
               ServersOf(manifest, part)});
  }
  std::printf("\n%s", table.ToString().c_str());
  if (manifest.parts_size() > kMaxRanksShown) {
    std::printf("... and %d more ranks (--json shows all)\n", manifest.parts_size() - kMaxRanksShown);
  }
}

absl::Status ShowTensors(Cli* cli, CheckpointReader* checkpoint) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<TensorInfo> tensors, checkpoint->Tensors());
  Table table({{"tensor"}, {"dtype"}, {"shape"}, {"raw", Align::kRight}, {"shards", Align::kRight}});
  Json array = Json::array();
  for (const TensorInfo& tensor : tensors) {
    const uint64_t bytes = WholeTensor(tensor.name, tensor.type, tensor.shape).bytes();
    const std::string dtype(ElementTypeName(tensor.type));
    table.Add({Printable(tensor.name), dtype, absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]"),
               HumanBytes(bytes), absl::StrCat(tensor.shards)});
    array.push_back({{"name", tensor.name},
                     {"dtype", dtype},
                     {"shape", tensor.shape},
                     {"raw_bytes", bytes},
                     {"shards", tensor.shards}});
  }
  cli->result["tensors"] = std::move(array);
  if (!cli->json) std::printf("\n%s", table.ToString().c_str());
  return absl::OkStatus();
}

absl::Status ShowItems(Cli* cli, CheckpointReader* checkpoint) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<ItemInfo> items, checkpoint->Items());
  Table table({{"rank", Align::kRight}, {"item"}, {"bytes", Align::kRight}});
  Json array = Json::array();
  for (const ItemInfo& item : items) {
    table.Add({absl::StrCat(item.rank), Printable(item.name), absl::StrCat(item.bytes)});
    array.push_back({{"rank", item.rank}, {"name", item.name}, {"bytes", item.bytes}});
  }
  cli->result["items"] = std::move(array);
  if (!cli->json) std::printf("\n%s", table.empty() ? "no byte items\n" : table.ToString().c_str());
  return absl::OkStatus();
}

absl::Status Show(Cli* cli, const ShowOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  ESKER_ASSIGN_OR_RETURN(const CheckpointManifest checkpoint, admin->GetCheckpoint(name.run, StepOf(name)));
  cli->result["checkpoint"] = CheckpointJson(checkpoint.record);
  cli->result["checkpoint"]["manifest_digest"] = Hex(checkpoint.record.manifest_digest());
  cli->result.update(ManifestJson(checkpoint.manifest));
  if (!cli->json) {
    PrintCheckpoint(checkpoint.record);
    PrintRanks(checkpoint.manifest);
  }
  if (!options.tensors && !options.items) return absl::OkStatus();
  ESKER_ASSIGN_OR_RETURN(const auto reader, ConnectReader(*cli));
  ESKER_ASSIGN_OR_RETURN(const auto opened, reader->OpenCheckpoint(name.run, checkpoint.record.step()));
  if (options.tensors) ESKER_RETURN_IF_ERROR(ShowTensors(cli, opened.get()));
  if (options.items) ESKER_RETURN_IF_ERROR(ShowItems(cli, opened.get()));
  return absl::OkStatus();
}

}  // namespace

void AddShowCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<ShowOptions>();
  CLI::App* command = AddCommand(app, cli, "show", "Show what a checkpoint holds", options, &Show);
  command->add_option("checkpoint", options->name, kCheckpointHelp)->required();
  command->add_flag("--tensors", options->tensors,
                    "Also each tensor's dtype, shape, size and number of shards");
  command->add_flag("--items", options->items, "Also each rank's byte items");
}

}  // namespace esker
