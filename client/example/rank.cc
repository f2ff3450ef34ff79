#include "rank.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "esker/esker.h"
#include "model.h"

namespace esker::example {
namespace {

using Seconds = std::chrono::duration<double>;

// One write a line, so that the lines of several processes don't mix.
void Say(const std::string& text) {
  const std::string line = absl::StrCat("train: ", text, "\n");
  [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, line.data(), line.size());
}

// The rank's rows of one global tensor.
TensorBox BoxOf(const ParameterShard& shard, const std::string& name) {
  const uint64_t rows = shard.rows.size(), columns = shard.shape.columns;
  if (shard.shape.is_bias) {
    return {name, ElementType::kF32, {shard.shape.rows}, {shard.rows.begin}, {rows}};
  }
  return {name, ElementType::kF32, {shard.shape.rows, columns}, {shard.rows.begin, 0}, {rows, columns}};
}

// A tensor of the state: where it is in the checkpoint, and in memory.
struct StateTensor {
  TensorBox box;
  std::vector<float>* values;
};

std::vector<StateTensor> StateTensors(Model& model) {
  std::vector<StateTensor> tensors;
  for (ParameterShard& shard : model.parameters()) {
    tensors.push_back({BoxOf(shard, absl::StrCat("model.", shard.shape.name)), &shard.weight});
    tensors.push_back({BoxOf(shard, absl::StrCat("adam.mean.", shard.shape.name)), &shard.exp_avg});
    tensors.push_back({BoxOf(shard, absl::StrCat("adam.square.", shard.shape.name)), &shard.exp_avg_sq});
  }
  return tensors;
}

TensorBox StepCounterBox() { return WholeTensor("step", ElementType::kU64, {}); }

// Drops what an earlier life logged beyond the step from which this one goes on, so that the log is that of
// one run.
absl::Status CutLossLog(const std::string& path, uint64_t last_step) {
  std::string kept;
  {
    std::ifstream in(path);
    std::string line;
    while (std::getline(in, line) && !in.eof() && std::strtoull(line.c_str(), nullptr, 10) <= last_step) {
      kept += line + "\n";
    }
  }
  std::ofstream out(path, std::ios::trunc);
  out << kept << std::flush;
  if (!out) return absl::PermissionDeniedError(absl::StrCat("--loss-log ", path, ": can't be written"));
  return absl::OkStatus();
}

// A rank of the job. Not thread-safe.
class Rank {
 public:
  Rank(const Options& options, uint32_t rank, Exchange* exchange)
      : options_(options),
        rank_(rank),
        exchange_(exchange),
        model_(options.hidden, options.seed, rank, options.ranks, exchange) {}

  absl::Status Start(const std::string& incarnation);
  void Train();
  // Waits for the last save.
  bool Finish();
  absl::Status WriteFinalState();

 private:
  absl::Status Restore(uint64_t step);
  void SaveIfDue();
  void AwaitSave();
  void ReportSave();
  bool AnyRankBusy();

  const Options& options_;
  const uint32_t rank_;
  Exchange* const exchange_;
  Model model_;
  std::optional<DataLoader> loader_;
  std::unique_ptr<Checkpointer> checkpointer_;
  std::ofstream loss_log_;  // of rank 0
  uint64_t step_ = 0;       // steps done
  double loss_ = 0;

  std::optional<SaveHandle> saving_;  // not reported yet
  std::chrono::steady_clock::time_point save_began_;
  double stall_seconds_ = 0;
  bool last_save_ok_ = true;
};

absl::Status Rank::Start(const std::string& incarnation) {
  absl::StatusOr<DataLoader> loader = DataLoader::Open(options_.text, options_.seed);
  if (!loader.ok()) return loader.status();
  loader_ = *std::move(loader);

  uint64_t state_bytes = 0;
  for (const StateTensor& tensor : StateTensors(model_)) state_bytes += tensor.box.bytes();
  CheckpointerOptions options;
  options.server = options_.server;
  options.run = options_.run;
  options.rank = rank_;
  options.world_size = options_.ranks;
  options.incarnation = incarnation;
  options.compression = options_.zstd ? Compression::kZstd : Compression::kNone;
  options.threads = 2;
  options.staging_bytes = state_bytes + (64 << 10);
  options.save_timeout_ms = options_.save_timeout_ms;
  absl::StatusOr<std::unique_ptr<Checkpointer>> checkpointer = Checkpointer::Open(options);
  if (!checkpointer.ok()) return checkpointer.status();
  checkpointer_ = *std::move(checkpointer);

  // All ranks must go on from the same step: rank 0 looks it up for all.
  if (rank_ == 0) {
    const absl::StatusOr<std::optional<uint64_t>> latest = checkpointer_->LatestStep();
    if (!latest.ok()) return latest.status();
    exchange_->announced_resume = latest->has_value();
    exchange_->announced_step = latest->value_or(0);
  }
  exchange_->Barrier();
  if (exchange_->announced_resume) {
    const absl::Status restored = Restore(exchange_->announced_step);
    if (!restored.ok()) return restored;
  } else if (rank_ == 0) {
    Say(absl::StrCat("run ", options_.run, ", attempt ", checkpointer_->attempt(),
                     ": no checkpoint yet, starting at step 0"));
  }
  if (rank_ == 0 && !options_.loss_log.empty()) {
    const absl::Status cut = CutLossLog(options_.loss_log, step_);
    if (!cut.ok()) return cut;
    loss_log_.open(options_.loss_log, std::ios::app);
  }
  return absl::OkStatus();
}

absl::Status Rank::Restore(uint64_t step) {
  const auto began = std::chrono::steady_clock::now();
  absl::StatusOr<std::unique_ptr<CheckpointReader>> checkpoint = checkpointer_->OpenCheckpoint(step);
  if (!checkpoint.ok()) return checkpoint.status();
  const CheckpointInfo info = (*checkpoint)->info();

  // Its own rows, whatever rows the ranks that saved had.
  RestoreRequest request;
  request.preferred_rank = rank_ % info.world_size;
  for (StateTensor& tensor : StateTensors(model_))
    request.tensors.push_back({tensor.box, tensor.values->data()});
  request.tensors.push_back({StepCounterBox(), &step_});
  const absl::Status restored = (*checkpoint)->Restore(request);
  if (!restored.ok()) return restored;

  // The loader and the generator are the same on all ranks, so with more ranks than before any rank's will
  // do.
  const absl::StatusOr<std::string> position = (*checkpoint)->ReadItem(request.preferred_rank, "data-loader");
  if (!position.ok()) return position.status();
  const absl::StatusOr<std::string> random =
      (*checkpoint)->ReadItem(request.preferred_rank, "random-generator");
  if (!random.ok()) return random.status();
  const absl::Status resumed = loader_->Resume(*position, *random);
  if (!resumed.ok()) return resumed;
  if (step_ != step) {
    return absl::DataLossError(
        absl::StrCat("the checkpoint of step ", step, " holds the step counter ", step_));
  }
  if (rank_ == 0) {
    const Seconds took = std::chrono::steady_clock::now() - began;
    Say(absl::StrFormat("run %s, attempt %d: resumed from step %d (saved by %d ranks, %.1f MB) in %.2f s",
                        options_.run, checkpointer_->attempt(), step, info.world_size,
                        static_cast<double>(info.raw_bytes) / 1e6, took.count()));
  }
  return absl::OkStatus();
}

void Rank::Train() {
  while (step_ < options_.steps) {
    loss_ = model_.Step(loader_->Next(), step_ + 1);
    ++step_;
    if (loss_log_.is_open()) loss_log_ << step_ << " " << absl::StrFormat("%.9g", loss_) << std::endl;
    if (options_.step_delay_ms > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(options_.step_delay_ms));
    if (saving_ && saving_->Done()) ReportSave();
    SaveIfDue();
  }
}

void Rank::SaveIfDue() {
  if (options_.save_every == 0 || (step_ % options_.save_every != 0 && step_ != options_.steps)) return;
  const bool must_save = step_ == options_.steps;
  if (options_.skip_when_busy && !must_save && AnyRankBusy()) {
    if (rank_ == 0)
      Say(absl::StrFormat("step %d: loss %.4f, not saved: the save before it is still under way", step_,
                          loss_));
    return;
  }
  AwaitSave();

  const std::string position = loader_->Position();
  const std::string random = loader_->RandomState();
  const std::string about = absl::StrCat("rank ", rank_, " of ", options_.ranks, ", pid ", getpid());
  State state;
  for (StateTensor& tensor : StateTensors(model_))
    state.tensors.push_back({tensor.box, tensor.values->data()});
  if (rank_ == 0) state.tensors.push_back({StepCounterBox(), &step_});
  state.items = {{"about", about}, {"data-loader", position}, {"random-generator", random}};

  save_began_ = std::chrono::steady_clock::now();
  if (rank_ == 0) Say(absl::StrFormat("step %d: loss %.4f, saving", step_, loss_));
  absl::StatusOr<SaveHandle> handle = checkpointer_->Save(step_, state);
  stall_seconds_ = Seconds(std::chrono::steady_clock::now() - save_began_).count();
  if (!handle.ok()) {
    // Training goes on: a checkpoint that can't be saved is a pity, a job that stops for it is a loss.
    last_save_ok_ = false;
    Say(absl::StrCat("step ", step_, ": rank ", rank_, " can't save: ", handle.status().ToString()));
    return;
  }
  saving_ = *std::move(handle);
}

// Whether to save is decided by all ranks together: a checkpoint that one rank skips never commits.
bool Rank::AnyRankBusy() {
  exchange_->Barrier();  // the counter of the vote before was read by all
  if (rank_ == 0) exchange_->busy_ranks = 0;
  exchange_->Barrier();
  if (saving_) ++exchange_->busy_ranks;
  exchange_->Barrier();
  return exchange_->busy_ranks > 0;
}

void Rank::AwaitSave() {
  if (!saving_) return;
  while (!saving_->Done()) {
    saving_->WaitFor(100).IgnoreError();  // the result is taken below
    exchange_->ExitIfPeerDied();
  }
  ReportSave();
}

void Rank::ReportSave() {
  const absl::Status result = saving_->Result();
  const Seconds took = std::chrono::steady_clock::now() - save_began_;
  last_save_ok_ = result.ok();
  if (!result.ok()) {
    Say(absl::StrCat("step ", saving_->step(), ": rank ", rank_, ": save failed: ", result.ToString()));
  } else if (rank_ == 0) {
    Say(absl::StrFormat("step %d: committed (the loop waited %.1f ms, in all %.2f s)", saving_->step(),
                        stall_seconds_ * 1e3, took.count()));
  }
  saving_.reset();
}

bool Rank::Finish() {
  AwaitSave();
  return last_save_ok_;
}

absl::Status Rank::WriteFinalState() {
  if (options_.final_state.empty()) return absl::OkStatus();
  const std::string path = UnfinishedFinalState(options_);
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0)
    return absl::PermissionDeniedError(absl::StrCat("--final-state ", path, ": ", strerror(errno)));
  uint64_t tensor_begin = 0;
  absl::Status status;
  for (const ParameterShard& shard : model_.parameters()) {
    const uint64_t row_bytes = shard.shape.columns * sizeof(float);
    for (const std::vector<float>* values : {&shard.weight, &shard.exp_avg, &shard.exp_avg_sq}) {
      const uint64_t bytes = values->size() * sizeof(float);
      const ssize_t written = ::pwrite(file, values->data(), bytes,
                                       static_cast<off_t>(tensor_begin + shard.rows.begin * row_bytes));
      if (written != static_cast<ssize_t>(bytes)) {
        status = absl::DataLossError(absl::StrCat("--final-state ", path, ": wrote ", written, " of ", bytes,
                                                  " bytes: ", strerror(errno)));
      }
      tensor_begin += shard.shape.rows * row_bytes;
    }
  }
  ::close(file);
  return status;
}

}  // namespace

std::string UnfinishedFinalState(const Options& options) { return options.final_state + ".unfinished"; }

int RunRank(const Options& options, uint32_t rank, const std::string& incarnation, Exchange* exchange) {
  Rank self(options, rank, exchange);
  absl::Status status = self.Start(incarnation);
  bool saved = true;
  if (status.ok()) {
    self.Train();
    saved = self.Finish();
    status = self.WriteFinalState();
  }
  if (!status.ok()) {
    fprintf(stderr, "train: rank %u: %s\n", rank, status.ToString().c_str());
    return 1;
  }
  return saved ? 0 : kLastSaveFailedExitCode;
}

}  // namespace esker::example
