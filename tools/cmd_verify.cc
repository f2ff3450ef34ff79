// esker verify RUN@STEP | RUN | RUN --all | --all
#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/hash.h"
#include "tools/cli.h"
#include "tools/fault_names.h"
#include "tools/progress.h"
#include "tools/records.h"

namespace esker {
namespace {

struct VerifyOptions {
  std::string name;
  bool all = false;
};

struct Fault {
  v1::ChunkFault fault;
  std::string hash;
  std::vector<std::string> tensors;  // empty if the layout can't be read either
};

// What came of one checkpoint.
struct Verdict {
  v1::CheckpointRecord record;
  uint64_t chunks = 0;
  uint64_t bytes_read = 0;
  std::vector<Fault> faults;
  absl::Status damage;  // of the checkpoint's own records: then its chunks were not all looked at

  bool intact() const { return faults.empty() && damage.ok(); }
};

using Names =
    std::vector<std::pair<std::string, std::optional<uint64_t>>>;  // run and step; no step: the latest

absl::Status AddSteps(AdminClient* admin, const std::string& run, Names* names) {
  ESKER_ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse list, admin->ListCheckpoints(run, false));
  for (const v1::CheckpointRecord& record : list.checkpoints()) names->emplace_back(run, record.step());
  return absl::OkStatus();
}

absl::StatusOr<Names> Select(AdminClient* admin, const VerifyOptions& options) {
  Names names;
  if (options.name.empty()) {
    if (!options.all) {
      return absl::InvalidArgumentError(
          "verify what? Name RUN@STEP or RUN, or say --all for everything there is");
    }
    ESKER_ASSIGN_OR_RETURN(const v1::ListRunsResponse runs, admin->ListRuns());
    for (const v1::RunRecord& run : runs.runs()) ESKER_RETURN_IF_ERROR(AddSteps(admin, run.run(), &names));
    return names;
  }
  if (absl::StrContains(options.name, "@")) {
    ESKER_ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(options.name));
    if (options.all)
      return absl::InvalidArgumentError("--all goes with a run, not with one checkpoint of it");
    names.emplace_back(name.run, StepOf(name));
    return names;
  }
  ESKER_RETURN_IF_ERROR(ValidateRunName(options.name));
  if (options.all) {
    ESKER_RETURN_IF_ERROR(AddSteps(admin, options.name, &names));
  } else {
    names.emplace_back(options.name, std::nullopt);
  }
  return names;
}

// Chunks that are still to come are taken to be as large as those that were read.
uint64_t EstimateTotal(const v1::VerifyPartsProgress& progress) {
  if (progress.chunks_done() == 0) return 0;
  return static_cast<uint64_t>(static_cast<double>(progress.bytes_read()) *
                               static_cast<double>(progress.chunks_total()) /
                               static_cast<double>(progress.chunks_done()));
}

Fault Describe(const v1::ChunkFault& fault, FaultNames* names) {
  const absl::StatusOr<Hash128> hash = HashFromBytes(fault.hash(), "hash");
  absl::StatusOr<std::vector<std::string>> tensors = names->Of(fault.rank(), fault.chunk_index());
  return {fault, hash.ok() ? hash->ToHex() : "",
          hash.ok() && tensors.ok() ? *std::move(tensors) : std::vector<std::string>()};
}

absl::Status CheckChunks(const Cli& cli, AdminClient* admin, const std::string& run,
                         std::optional<uint64_t> step, Verdict* verdict) {
  ESKER_ASSIGN_OR_RETURN(const CheckpointManifest checkpoint, admin->GetCheckpoint(run, step));
  verdict->record = checkpoint.record;
  // By name, so that a part that is gone altogether is missed.
  std::vector<uint32_t> ranks;
  for (const v1::PartEntry& part : checkpoint.manifest.parts()) ranks.push_back(part.rank());
  std::vector<v1::ChunkFault> faults;
  absl::Status status;
  {
    ProgressBar bar("verifying " + NameOf(checkpoint.record));
    status = admin->VerifyParts(checkpoint.record, ranks, [&](const v1::VerifyPartsProgress& progress) {
      verdict->chunks = progress.chunks_done();
      verdict->bytes_read = progress.bytes_read();
      faults.insert(faults.end(), progress.faults().begin(), progress.faults().end());
      bar.Update(progress.bytes_read(), EstimateTotal(progress));
      return true;
    });
  }
  ESKER_ASSIGN_OR_RETURN(auto connection, Connection::Make(cli.server));
  FaultNames names(std::move(connection), checkpoint.record, cli.timeout_ms);
  for (const v1::ChunkFault& fault : faults) verdict->faults.push_back(Describe(fault, &names));
  return status;
}

// That the checkpoint's own records are damaged is a verdict, not an error.
absl::StatusOr<Verdict> VerifyOne(const Cli& cli, AdminClient* admin, const std::string& run,
                                  std::optional<uint64_t> step) {
  Verdict verdict;
  verdict.record.set_run(run);
  verdict.record.set_step(step.value_or(0));
  absl::Status status = CheckChunks(cli, admin, run, step, &verdict);
  if (!status.ok() && status.code() != absl::StatusCode::kDataLoss) return status;
  verdict.damage = std::move(status);
  return verdict;
}

std::string TensorText(const Fault& fault) {
  if (fault.tensors.empty()) return "tensors not known";
  constexpr size_t kShown = 3;
  const size_t shown = std::min(kShown, fault.tensors.size());
  std::string text = absl::StrJoin(
      fault.tensors.begin(), fault.tensors.begin() + static_cast<ptrdiff_t>(shown), ", ",
      [](std::string* to, const std::string& name) { absl::StrAppend(to, "\"", Printable(name), "\""); });
  if (fault.tensors.size() > shown) absl::StrAppend(&text, " and ", fault.tensors.size() - shown, " more");
  return text;
}

void Print(const Verdict& verdict) {
  const std::string name = NameOf(verdict.record);
  for (const Fault& fault : verdict.faults) {
    const v1::ChunkFault& found = fault.fault;
    if (fault.hash.empty()) {  // the part as a whole
      std::printf("DAMAGED %s rank %u: %s\n", name.c_str(), found.rank(),
                  Printable(found.error(), 400).c_str());
      continue;
    }
    std::printf("DAMAGED %s rank %u, tensor %s, chunk %u (%s), %s: %s\n", name.c_str(), found.rank(),
                TensorText(fault).c_str(), found.chunk_index(), fault.hash.c_str(),
                found.file().empty()
                    ? "not in the server's index"
                    : absl::StrCat("file ", found.file(), " at offset ", found.file_offset()).c_str(),
                Printable(found.error(), 400).c_str());
  }
  if (!verdict.damage.ok()) {
    std::printf("DAMAGED %s: %s\n", name.c_str(), std::string(verdict.damage.message()).c_str());
  }
  std::printf("%s: %llu chunks, %s read: %s\n", name.c_str(), static_cast<unsigned long long>(verdict.chunks),
              HumanBytes(verdict.bytes_read).c_str(),
              verdict.intact() ? "all verified" : absl::StrCat(verdict.faults.size(), " faults").c_str());
}

Json VerdictJson(const Verdict& verdict) {
  Json faults = Json::array();
  for (const Fault& fault : verdict.faults) {
    faults.push_back({{"run", verdict.record.run()},
                      {"step", verdict.record.step()},
                      {"rank", fault.fault.rank()},
                      {"tensors", fault.tensors},
                      {"chunk", fault.fault.chunk_index()},
                      {"hash", fault.hash},
                      {"file", fault.fault.file()},
                      {"offset", fault.fault.file_offset()},
                      {"error", fault.fault.error()}});
  }
  Json json = {{"run", verdict.record.run()}, {"step", verdict.record.step()},
               {"chunks", verdict.chunks},    {"bytes_read", verdict.bytes_read},
               {"intact", verdict.intact()},  {"faults", std::move(faults)}};
  if (!verdict.damage.ok()) json["damage"] = std::string(verdict.damage.message());
  return json;
}

absl::Status Verify(Cli* cli, const VerifyOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  ESKER_ASSIGN_OR_RETURN(const Names names, Select(admin.get(), options));
  Json checkpoints = Json::array();
  uint64_t damaged = 0;
  uint64_t faults = 0;
  for (const auto& [run, step] : names) {
    const absl::StatusOr<Verdict> verdict = VerifyOne(*cli, admin.get(), run, step);
    // Deleted since it was listed.
    if (options.all && verdict.status().code() == absl::StatusCode::kNotFound) continue;
    ESKER_RETURN_IF_ERROR(verdict.status());
    damaged += verdict->intact() ? 0 : 1;
    faults += verdict->faults.size();
    checkpoints.push_back(VerdictJson(*verdict));
    if (!cli->json) Print(*verdict);
  }
  cli->result["checkpoints"] = std::move(checkpoints);
  cli->result["damaged_checkpoints"] = damaged;
  cli->result["faults"] = faults;
  if (damaged == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(faults, " faults in ", damaged, " of ", names.size(),
                   " checkpoints: restores of what they hold are refused, all else can be "
                   "restored with --only"));
}

}  // namespace

void AddVerifyCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command =
      AddCommand(app, cli, "verify", "Read every chunk on the server and check it", options, &Verify);
  command->add_option("checkpoint", options->name, "RUN@STEP, RUN@latest, or RUN for its latest");
  command->add_flag("--all", options->all, "Every checkpoint of the run; without a run, of all runs");
  command->footer(
      "Each damaged chunk is named with run, step, rank, tensors, file and offset; then the exit code is 4.");
}

}  // namespace esker
