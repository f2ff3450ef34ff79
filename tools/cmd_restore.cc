// esker restore RUN@STEP --to PATH [--format F] [--only GLOB]… [--per-rank] [--max-shard-size BYTES]
// [--force]
#include <fnmatch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/box.h"
#include "tools/cli.h"
#include "tools/files.h"
#include "tools/interchange.h"
#include "tools/interrupt.h"
#include "tools/metadata_item.h"
#include "tools/progress.h"
#include "tools/safetensors.h"
#include "tools/safetensors_index.h"

namespace esker {
namespace {

constexpr const char* kRankIndexFile = "esker.index.json";

// No --from-rank.
constexpr uint32_t kAnyRank = UINT32_MAX;

struct RestoreOptions {
  std::string name;
  std::string to;
  std::string format;
  std::vector<std::string> only;
  std::string max_shard_size;
  uint32_t from_rank = kAnyRank;
  bool per_rank = false;
  bool force = false;
};

// A box to write, and what it is called in its file.
struct OutputTensor {
  TensorBox box;
  std::string key;
};

struct OutputFile {
  std::string name;
  uint32_t rank = 0;  // whose boxes these are, with --per-rank
  std::vector<OutputTensor> tensors;
};

struct RestorePlan {
  std::vector<TensorInfo> tensors;  // those that are restored
  std::vector<OutputFile> files;
  SafetensorsMetadata metadata;
  uint64_t items_left_out = 0;
  uint64_t raw_bytes = 0;  // of all files
};

bool Matches(const std::string& glob, const std::string& name) {
  return ::fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

absl::StatusOr<std::vector<TensorInfo>> SelectTensors(std::vector<TensorInfo> tensors,
                                                      const RestoreOptions& options) {
  if (options.only.empty()) return tensors;
  for (const std::string& glob : options.only) {
    if (std::none_of(tensors.begin(), tensors.end(),
                     [&](const TensorInfo& t) { return Matches(glob, t.name); })) {
      return absl::NotFoundError(absl::StrCat("no tensor of ", options.name, " matches --only \"",
                                              Printable(glob), "\": `esker show ", options.name,
                                              " --tensors` lists their names"));
    }
  }
  std::erase_if(tensors, [&](const TensorInfo& tensor) {
    return std::none_of(options.only.begin(), options.only.end(),
                        [&](const std::string& glob) { return Matches(glob, tensor.name); });
  });
  return tensors;
}

// Whole tensors, in one file or as many as `max_shard_bytes` makes.
void PlanShardFiles(uint64_t max_shard_bytes, RestorePlan* plan) {
  std::vector<OutputTensor> tensors;
  std::vector<uint64_t> sizes;
  for (const TensorInfo& tensor : plan->tensors) {
    tensors.push_back({WholeTensor(tensor.name, tensor.type, tensor.shape), tensor.name});
    sizes.push_back(tensors.back().box.bytes());
  }
  const std::vector<std::vector<size_t>> shards = SplitIntoShards(sizes, max_shard_bytes);
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    OutputFile& file = plan->files.emplace_back();
    file.name = ShardFileName(shard, shards.size());
    for (const size_t i : shards[shard]) file.tensors.push_back(std::move(tensors[i]));
  }
}

// A rank may hold several boxes of one tensor; a safetensors file has each name once.
void ChooseKeys(std::vector<OutputTensor>* tensors) {
  std::map<std::string, int> boxes;
  for (const OutputTensor& tensor : *tensors) ++boxes[tensor.box.name];
  std::set<std::string> taken;
  for (const auto& [name, count] : boxes) {
    if (count == 1) taken.insert(name);
  }
  for (OutputTensor& tensor : *tensors) {
    tensor.key = tensor.box.name;
    if (boxes[tensor.box.name] == 1) continue;
    tensor.key += Box{tensor.box.offset, tensor.box.extent}.ToString();
    while (!taken.insert(tensor.key).second) tensor.key += "'";
  }
}

absl::Status PlanRankFiles(CheckpointReader* checkpoint, RestorePlan* plan) {
  std::set<std::string> wanted;
  for (const TensorInfo& tensor : plan->tensors) wanted.insert(tensor.name);
  for (uint32_t rank = 0; rank < checkpoint->info().world_size; ++rank) {
    ESKER_ASSIGN_OR_RETURN(std::vector<TensorBox> boxes, checkpoint->StoredBy(rank));
    OutputFile file;
    file.name = absl::StrFormat("rank-%05u.safetensors", rank);
    file.rank = rank;
    for (TensorBox& box : boxes) {
      if (wanted.contains(box.name)) file.tensors.push_back({std::move(box), ""});
    }
    if (file.tensors.empty()) continue;
    ChooseKeys(&file.tensors);
    plan->files.push_back(std::move(file));
  }
  return absl::OkStatus();
}

// The __metadata__ that `esker save` kept. Other byte items have no place in a safetensors file.
absl::Status PlanItems(CheckpointReader* checkpoint, RestorePlan* plan) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<ItemInfo> items, checkpoint->Items());
  plan->items_left_out = items.size();
  for (const ItemInfo& item : items) {
    if (item.rank != kMetadataRank || item.name != kMetadataItem) continue;
    ESKER_ASSIGN_OR_RETURN(const std::string json, checkpoint->ReadItem(item.rank, item.name));
    absl::StatusOr<SafetensorsMetadata> metadata = MetadataFromJson(json);
    if (!metadata.ok()) continue;  // a job's own item that happens to have the name
    plan->metadata = *std::move(metadata);
    --plan->items_left_out;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> MaxShardBytes(const RestoreOptions& options) {
  if (options.max_shard_size.empty()) return std::numeric_limits<uint64_t>::max();
  ESKER_ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(options.max_shard_size));
  if (bytes == 0) return absl::InvalidArgumentError("--max-shard-size 0: expected more than that, e.g. 5GB");
  return bytes;
}

// Loaders of sharded models refuse files that do not say whose tensors they hold.
void NameFramework(SafetensorsMetadata* metadata) {
  const bool named = std::any_of(metadata->begin(), metadata->end(),
                                 [](const auto& entry) { return entry.first == "format"; });
  if (!named) metadata->emplace_back("format", "pt");
}

absl::StatusOr<RestorePlan> MakePlan(CheckpointReader* checkpoint, const RestoreOptions& options) {
  RestorePlan plan;
  ESKER_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, checkpoint->Tensors());
  ESKER_ASSIGN_OR_RETURN(plan.tensors, SelectTensors(std::move(tensors), options));
  if (options.per_rank) {
    ESKER_RETURN_IF_ERROR(PlanRankFiles(checkpoint, &plan));
  } else {
    ESKER_ASSIGN_OR_RETURN(const uint64_t max_shard_bytes, MaxShardBytes(options));
    PlanShardFiles(max_shard_bytes, &plan);
  }
  for (const OutputFile& file : plan.files) {
    for (const OutputTensor& tensor : file.tensors) plan.raw_bytes += tensor.box.bytes();
  }
  ESKER_RETURN_IF_ERROR(PlanItems(checkpoint, &plan));
  if (!options.max_shard_size.empty()) NameFramework(&plan.metadata);
  return plan;
}

// Restores straight into the file's pages.
absl::Status WriteOutputFile(CheckpointReader* checkpoint, const OutputFile& file, const std::string& path,
                             const SafetensorsMetadata& metadata, const ProgressCallback& progress) {
  std::vector<SafetensorsTensor> tensors;
  for (const OutputTensor& tensor : file.tensors) {
    tensors.push_back({tensor.key, tensor.box.type, tensor.box.extent});
  }
  ESKER_ASSIGN_OR_RETURN(const SafetensorsLayout layout, LayOutSafetensors(tensors, metadata));
  ESKER_ASSIGN_OR_RETURN(const auto mapped, MappedFile::Create(path, layout.file_bytes));
  std::byte* const base = mapped->bytes().data();
  std::memcpy(base, layout.head.data(), layout.head.size());
  RestoreRequest request;
  request.preferred_rank = file.rank;
  request.progress = progress;
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    const TensorBox& box = file.tensors[i].box;
    if (box.bytes() > 0) request.tensors.push_back({box, base + layout.offsets[i]});
  }
  if (!request.tensors.empty()) ESKER_RETURN_IF_ERROR(checkpoint->Restore(request));
  return mapped->Sync();
}

// Which box of which tensor lies in which file, under which name.
std::string RankIndexJson(const CheckpointInfo& info, const RestorePlan& plan) {
  std::map<std::string, Json> shards;
  for (const OutputFile& file : plan.files) {
    for (const OutputTensor& tensor : file.tensors) {
      Json& list = shards[tensor.box.name];
      list.push_back({{"rank", file.rank},
                      {"file", file.name},
                      {"key", tensor.key},
                      {"offset", tensor.box.offset},
                      {"extent", tensor.box.extent}});
    }
  }
  Json tensors = Json::array();
  for (const TensorInfo& tensor : plan.tensors) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", std::string(ElementTypeName(tensor.type))},
                       {"shape", tensor.shape},
                       {"shards", std::move(shards[tensor.name])}});
  }
  const Json index = {{"esker_index_version", 1}, {"run", info.run},
                      {"step", info.step},        {"attempt", info.attempt},
                      {"ranks", info.world_size}, {"tensors", std::move(tensors)}};
  return JsonText(index, true) + "\n";
}

absl::Status WriteFiles(CheckpointReader* checkpoint, const RestoreOptions& options, const RestorePlan& plan,
                        OutputTarget* target) {
  ProgressBar bar("restoring");
  uint64_t done_before = 0;
  for (const OutputFile& file : plan.files) {
    uint64_t file_bytes = 0;
    for (const OutputTensor& tensor : file.tensors) file_bytes += tensor.box.bytes();
    const auto progress = [&bar, &plan, done_before](uint64_t done, uint64_t) {
      bar.Update(done_before + done, plan.raw_bytes);
    };
    ESKER_RETURN_IF_ERROR(
        WriteOutputFile(checkpoint, file, target->StagingPath(file.name), plan.metadata, progress));
    done_before += file_bytes;
  }
  if (options.per_rank) {
    return WriteFileDurably(target->StagingPath(kRankIndexFile), RankIndexJson(checkpoint->info(), plan));
  }
  if (plan.files.size() == 1) return absl::OkStatus();
  WeightMap weight_map;
  for (const OutputFile& file : plan.files) {
    for (const OutputTensor& tensor : file.tensors) weight_map[tensor.key] = file.name;
  }
  return WriteFileDurably(target->StagingPath(kShardIndexFile), ShardIndexJson(weight_map, plan.raw_bytes));
}

void Report(Cli* cli, const CheckpointInfo& info, const RestorePlan& plan, const OutputTarget& target,
            double seconds) {
  Json files = Json::array();
  for (const OutputFile& file : plan.files) files.push_back(target.FinalPath(file.name));
  cli->result["run"] = info.run;
  cli->result["step"] = info.step;
  cli->result["tensors"] = plan.tensors.size();
  cli->result["bytes"] = plan.raw_bytes;
  cli->result["seconds"] = seconds;
  cli->result["items_left_out"] = plan.items_left_out;
  cli->result["files"] = std::move(files);
  if (cli->json) return;
  const std::string where =
      plan.files.size() == 1 ? target.FinalPath(plan.files[0].name) : target.FinalPath("");
  std::printf("restored %s@%llu: %zu tensors, %s into %s; %.1f s, %s\n", info.run.c_str(),
              static_cast<unsigned long long>(info.step), plan.tensors.size(),
              HumanBytes(plan.raw_bytes).c_str(), where.c_str(), seconds,
              HumanRate(static_cast<double>(plan.raw_bytes) / seconds).c_str());
  if (plan.items_left_out > 0) {
    std::printf(
        "%llu byte items are not in it: safetensors holds tensors only (esker show --items lists them)\n",
        static_cast<unsigned long long>(plan.items_left_out));
  }
}

// As asked for, else by the output's name.
absl::StatusOr<Format> FormatOf(const RestoreOptions& options) {
  if (!options.format.empty()) return *FormatNamed(options.format);
  for (const char* suffix : {".pt", ".pth"}) {
    if (absl::EndsWith(options.to, suffix)) return Format::kTorch;
  }
  return Format::kSafetensors;
}

absl::Status RestoreThroughPython(const Cli& cli, const RestoreOptions& options, Format format) {
  if (!options.only.empty() || options.per_rank || !options.max_shard_size.empty()) {
    return absl::InvalidArgumentError("--only, --per-rank and --max-shard-size are for safetensors");
  }
  // Values may begin with a dash.
  std::vector<std::string> arguments = {
      "restore", "--to=" + options.to, format == Format::kDcp ? "--format=dcp" : "--format=torch",
      "--server=" + cli.server, absl::StrCat("--timeout-ms=", cli.timeout_ms)};
  if (options.from_rank != kAnyRank) arguments.push_back(absl::StrCat("--from-rank=", options.from_rank));
  if (options.force) arguments.push_back("--force");
  if (cli.json) arguments.push_back("--json");
  arguments.insert(arguments.end(), {"--", options.name});
  return BecomeInterchange(arguments);
}

absl::Status Restore(Cli* cli, const RestoreOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
  ESKER_ASSIGN_OR_RETURN(const Format format, FormatOf(options));
  if (format != Format::kSafetensors) return RestoreThroughPython(*cli, options, format);
  if (options.from_rank != kAnyRank) {
    return absl::InvalidArgumentError(
        "--from-rank is for the formats dcp and torch: in safetensors, what each rank "
        "saved for itself has the rank in its name");
  }
  if (options.per_rank && !options.max_shard_size.empty()) {
    return absl::InvalidArgumentError("--per-rank and --max-shard-size are two ways to cut: choose one");
  }
  ESKER_RETURN_IF_ERROR(MaxShardBytes(options).status());
  const bool to_file = absl::EndsWith(options.to, ".safetensors");
  if (to_file && (options.per_rank || !options.max_shard_size.empty())) {
    return absl::InvalidArgumentError(
        "--per-rank and --max-shard-size write several files: let --to name a directory");
  }
  const auto kind = to_file ? OutputTarget::Kind::kFile : OutputTarget::Kind::kDirectory;
  // Held while the target is made, so that an interrupt either comes before it or finds it.
  Mutex making;
  std::unique_ptr<OutputTarget> target;
  const InterruptGuard guard([&making, &target] {
    MutexLock lock(&making);
    if (target != nullptr) target->RemoveStaging();
  });
  {
    MutexLock lock(&making);
    ESKER_ASSIGN_OR_RETURN(target, OutputTarget::Create(options.to, kind, options.force));
  }

  const auto start = std::chrono::steady_clock::now();
  ESKER_ASSIGN_OR_RETURN(const auto reader, ConnectReader(*cli));
  ESKER_ASSIGN_OR_RETURN(const auto checkpoint, reader->OpenCheckpoint(name.run, StepOf(name)));
  ESKER_ASSIGN_OR_RETURN(const RestorePlan plan, MakePlan(checkpoint.get(), options));
  ESKER_RETURN_IF_ERROR(WriteFiles(checkpoint.get(), options, plan, target.get()));
  ESKER_RETURN_IF_ERROR(target->Commit());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  Report(cli, checkpoint->info(), plan, *target, took.count());
  return absl::OkStatus();
}

}  // namespace

void AddRestoreCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<RestoreOptions>();
  CLI::App* command = AddCommand(app, cli, "restore", "Restore a checkpoint into other libraries' formats",
                                 options, &Restore);
  command->add_option("checkpoint", options->name, kCheckpointHelp)->required();
  command
      ->add_option("--to", options->to,
                   "The output: FILE.safetensors, FILE.pt, or a directory that is new or empty")
      ->required();
  command
      ->add_option(
          "--format", options->format,
          "safetensors (default); dcp: a directory for torch.distributed.checkpoint; torch: a file of "
          "torch.save (default for .pt and .pth)")
      ->check(CLI::IsMember({"safetensors", "dcp", "torch"}))
      ->option_text("safetensors|dcp|torch");
  command->add_option("--only", options->only, "Only tensors whose name matches the glob; may be repeated")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag(
      "--per-rank", options->per_rank,
      "One file per saved rank, with its boxes, and esker.index.json that says what lies where");
  command->add_option(
      "--max-shard-size", options->max_shard_size,
      "Split over files of at most so many bytes, e.g. 5GB, with model.safetensors.index.json");
  command->add_option(
      "--from-rank", options->from_rank,
      "dcp, torch: whose to take of what each rank saved for itself (default: an error that lists it)");
  command->add_flag("--force", options->force,
                    "Replace an existing file, or files in a directory that is not empty");
  command->footer(
      "Every byte is checked against the hash taken when it was saved. The output appears whole or not at "
      "all.");
}

}  // namespace esker
