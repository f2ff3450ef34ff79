// esker save RUN@STEP PATH… [--ranks N] [--incarnation TOKEN] [--compress none|zstd|planes] [--force]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "esker/checkpointer.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "tools/cli.h"
#include "tools/interchange.h"
#include "tools/metadata_item.h"
#include "tools/progress.h"
#include "tools/records.h"
#include "tools/save_input.h"
#include "tools/split.h"

namespace esker {
namespace {

// Each rank is a client with threads of its own in this one process.
constexpr uint32_t kMaxRanks = 256;

struct SaveOptions {
  std::string name;
  std::vector<std::string> paths;
  uint32_t ranks = 1;
  std::string incarnation;
  Compression compression = Compression::kNone;
  bool force = false;
};

// One start of a job, as far as the server is concerned.
std::string NewIncarnation() {
  std::random_device random;
  return absl::StrFormat("esker-save-%08x%08x", random(), random());
}

// What all ranks of one save share. Outlives the command if ranks don't end (see WaitForRanks).
struct SaveJob {
  SaveJob(const Cli& cli, const SaveOptions& options, const CheckpointName& name, SaveInput read)
      : input(std::move(read)),
        step(name.step),
        metadata(MetadataToJson(input.metadata)),
        bar("saving"),
        running(options.ranks),
        done_bytes(options.ranks) {
    const auto cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    client.server = cli.server;
    client.run = name.run;
    client.world_size = options.ranks;
    client.incarnation = options.incarnation.empty() ? NewIncarnation() : options.incarnation;
    client.compression = options.compression;
    client.connect_timeout_ms = cli.timeout_ms;
    client.threads = std::clamp(cores / static_cast<int>(options.ranks), 1, 8);
  }

  const SaveInput input;
  const uint64_t step;
  const std::string metadata;
  CheckpointerOptions client;  // of every rank but for its number; constant after construction
  ProgressBar bar;

  Mutex mu;
  CondVar changed;
  uint32_t running ABSL_GUARDED_BY(mu);
  std::vector<uint64_t> done_bytes ABSL_GUARDED_BY(mu);
  // The first error: the other ranks' are mostly its consequence.
  absl::Status status ABSL_GUARDED_BY(mu);
};

void ShowProgress(SaveJob* job, uint32_t rank, uint64_t done_bytes) {
  MutexLock lock(&job->mu);
  job->done_bytes[rank] = done_bytes;
  uint64_t sum = 0;
  for (const uint64_t bytes : job->done_bytes) sum += bytes;
  job->bar.Update(sum, job->input.raw_bytes);
}

absl::Status SaveRank(SaveJob* job, uint32_t rank, const State& state) {
  CheckpointerOptions options = job->client;
  options.rank = rank;
  ESKER_ASSIGN_OR_RETURN(const auto checkpointer, Checkpointer::Open(options));
  ESKER_ASSIGN_OR_RETURN(const SaveHandle handle, checkpointer->Save(job->step, state));
  while (true) {
    const absl::Status status = handle.WaitFor(200);
    ShowProgress(job, rank, handle.Progress().processed_bytes);
    if (handle.Done()) return handle.Result();
    // WaitFor's deadline; anything else is an end.
    if (status.code() != absl::StatusCode::kDeadlineExceeded) return status;
  }
}

std::thread StartRank(const std::shared_ptr<SaveJob>& job, uint32_t rank, State state) {
  return std::thread([job, rank, state = std::move(state)] {
    const absl::Status status = SaveRank(job.get(), rank, state);
    MutexLock lock(&job->mu);
    job->status.Update(status);
    --job->running;
    job->changed.NotifyAll();
  });
}

// Waits for the ranks' ends, and returns true. Once one has failed the others are given a moment to hear of
// it; if then some still wait for its part, returns false: they would do so until the server gives up the
// save.
bool WaitForRanks(SaveJob* job) {
  constexpr auto kGrace = std::chrono::seconds(5);
  MutexLock lock(&job->mu);
  while (job->running > 0 && job->status.ok()) job->changed.Wait(&job->mu);
  const auto deadline = std::chrono::steady_clock::now() + kGrace;
  while (job->running > 0 && job->changed.WaitUntil(&job->mu, deadline)) {
  }
  job->bar.Remove();
  return job->running == 0;
}

absl::Status SaveAllRanks(Cli* cli, const std::shared_ptr<SaveJob>& job) {
  const uint32_t ranks = job->client.world_size;
  std::vector<std::vector<SourceTensor>> split = SplitOverRanks(job->input.tensors, ranks);
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    State state;
    state.tensors = std::move(split[rank]);
    if (rank == kMetadataRank && !job->input.metadata.empty())
      state.items.push_back({kMetadataItem, job->metadata});
    threads.push_back(StartRank(job, rank, std::move(state)));
  }
  const bool ended = WaitForRanks(job.get());
  for (std::thread& thread : threads) ended ? thread.join() : thread.detach();
  cli->exit_at_once = !ended;
  MutexLock lock(&job->mu);
  return job->status;
}

// A save by a new incarnation may replace a committed step: nobody who types one in means that.
absl::Status CheckStepIsFree(AdminClient* admin, const CheckpointName& name) {
  const absl::Status found = admin->GetCheckpoint(name.run, name.step).status();
  if (found.code() == absl::StatusCode::kNotFound) return absl::OkStatus();
  ESKER_RETURN_IF_ERROR(found);
  return absl::AlreadyExistsError(
      absl::StrCat(name.run, "@", name.step, " exists: choose another step, or --force to replace it"));
}

// Of all the paths together: what is not safetensors is a checkpoint by itself.
absl::StatusOr<Format> FormatOf(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    ESKER_ASSIGN_OR_RETURN(const Format format, DetectFormat(path));
    if (format == Format::kSafetensors) continue;
    if (paths.size() == 1) return format;
    return absl::InvalidArgumentError(path + " is a checkpoint by itself: save it without the other paths");
  }
  return Format::kSafetensors;
}

absl::Status SaveThroughPython(const Cli& cli, const SaveOptions& options) {
  if (options.ranks != 1) {
    return absl::InvalidArgumentError("--ranks is for safetensors: " + options.paths[0] +
                                      " is cut into parts of about 1 GiB by itself");
  }
  // Values may begin with a dash.
  std::vector<std::string> arguments = {"save", "--server=" + cli.server,
                                        absl::StrCat("--timeout-ms=", cli.timeout_ms),
                                        "--compress=" + CompressionName(options.compression)};
  if (!options.incarnation.empty()) arguments.push_back("--incarnation=" + options.incarnation);
  if (options.force) arguments.push_back("--force");
  if (cli.json) arguments.push_back("--json");
  arguments.insert(arguments.end(), {"--", options.name, options.paths[0]});
  return BecomeInterchange(arguments);
}

absl::Status Save(Cli* cli, const SaveOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
  if (name.latest) return absl::InvalidArgumentError(options.name + ": a save needs a step: RUN@STEP");
  ESKER_ASSIGN_OR_RETURN(const Format format, FormatOf(options.paths));
  if (format != Format::kSafetensors) return SaveThroughPython(*cli, options);
  ESKER_ASSIGN_OR_RETURN(SaveInput input, ReadSaveInput(options.paths));
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  if (!options.force) ESKER_RETURN_IF_ERROR(CheckStepIsFree(admin.get(), name));

  const auto start = std::chrono::steady_clock::now();
  const size_t tensors = input.tensors.size();
  ESKER_RETURN_IF_ERROR(SaveAllRanks(cli, std::make_shared<SaveJob>(*cli, options, name, std::move(input))));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;

  ESKER_ASSIGN_OR_RETURN(const CheckpointManifest saved, admin->GetCheckpoint(name.run, name.step));
  const v1::CheckpointRecord& record = saved.record;
  cli->result["checkpoint"] = CheckpointJson(record);
  cli->result["tensors"] = tensors;
  cli->result["seconds"] = took.count();
  if (!cli->json) {
    std::printf("saved %s: %zu tensors, %s over %u ranks, %s stored, %s of it new; %.1f s, %s\n",
                NameOf(record).c_str(), tensors, HumanBytes(record.raw_bytes()).c_str(), record.world_size(),
                HumanBytes(record.stored_bytes()).c_str(), HumanBytes(record.new_stored_bytes()).c_str(),
                took.count(), HumanRate(static_cast<double>(record.raw_bytes()) / took.count()).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddSaveCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<SaveOptions>();
  CLI::App* command =
      AddCommand(app, cli, "save", "Save a checkpoint of another library's format", options, &Save);
  command->add_option("checkpoint", options->name, "RUN@STEP")->required();
  command
      ->add_option("paths", options->paths,
                   "safetensors files, a model's directory or its ….safetensors.index.json; or one file of "
                   "torch.save, or one directory of torch.distributed.checkpoint")
      ->required();
  command->add_option("--ranks", options->ranks, "Over how many ranks to spread the tensors")
      ->check(CLI::Range(uint32_t{1}, kMaxRanks))
      ->capture_default_str();
  command->add_option(
      "--incarnation", options->incarnation,
      "The token of this start of the job (default: a new one, which fences whoever writes to the run)");
  AddCompressOption(command, &options->compression);
  command->add_flag("--force", options->force, "Replace a committed checkpoint of that step");
  command->footer(
      "Tensors of at least as many rows as there are ranks are cut along their first dimension; the others "
      "go whole to\n"
      "one rank. The files' __metadata__ is kept as a byte item. What torch wrote is read by the Python "
      "package; nothing "
      "in it\n"
      "is run.");
}

}  // namespace esker
