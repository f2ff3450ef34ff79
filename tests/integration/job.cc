#include "tests/integration/job.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker::testing {
namespace {

constexpr uint64_t kItemBytes = 5000;

std::string TrainingItem(uint32_t rank, uint64_t seed, uint64_t step) {
  return ItemContent("rng", rank, kItemBytes + 700 * step, seed + step);
}

// As RestoreDifference, whatever the state consists of.
std::string FindDifference(const std::string& server, const std::string& run, uint64_t step,
                           const std::vector<GlobalTensor>& tensors, uint32_t ranks, const Content& content,
                           const std::function<std::string(uint32_t rank)>& item_content) {
  const absl::StatusOr<std::unique_ptr<Reader>> reader = Reader::Open({.server = server});
  if (!reader.ok()) return reader.status().ToString();
  const absl::StatusOr<std::unique_ptr<CheckpointReader>> checkpoint = (*reader)->OpenCheckpoint(run, step);
  if (!checkpoint.ok()) return checkpoint.status().ToString();
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    RestoreTarget target(RowShards(tensors, rank, ranks));
    RestoreRequest request;
    request.tensors = target.tensors();
    request.preferred_rank = rank;
    const absl::Status restored = (*checkpoint)->Restore(request);
    if (!restored.ok()) return absl::StrCat("rank ", rank, ": ", restored.ToString());
    const std::string difference = target.Difference(content);
    if (!difference.empty()) return absl::StrCat("rank ", rank, ": ", difference);
    if (ranks != (*checkpoint)->info().world_size) continue;
    const absl::StatusOr<std::string> item = (*checkpoint)->ReadItem(rank, "rng");
    if (!item.ok()) return absl::StrCat("rank ", rank, ": ", item.status().ToString());
    if (*item != item_content(rank)) return absl::StrCat("rank ", rank, ": the item differs");
    const absl::StatusOr<std::string> empty = (*checkpoint)->ReadItem(rank, "empty");
    if (!empty.ok() || !empty->empty()) return absl::StrCat("rank ", rank, ": the empty item is not");
  }
  return "";
}

}  // namespace

JobState MakeJobState(const std::vector<GlobalTensor>& tensors, uint32_t ranks, uint64_t seed) {
  JobState state;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    RankState& mine = state.emplace_back();
    for (const TensorBox& box : RowShards(tensors, rank, ranks)) mine.AddTensor(box, seed);
    mine.AddItem("rng", ItemContent("rng", rank, kItemBytes, seed));
    mine.AddItem("empty", "");
  }
  return state;
}

const std::vector<GlobalTensor>& TrainingTensors() {
  static const auto* const kTensors = new std::vector<GlobalTensor>{
      {"layer.weight", ElementType::kBF16, {512, 1024}},
      {"layer.bias", ElementType::kBF16, {1024}},
      {"optimizer.master", ElementType::kF32, {512, 1024}},
      {"optimizer.step", ElementType::kI64, {}},
      {"seen", ElementType::kI64, {300}},
  };
  return *kTensors;
}

JobState MakeTrainingState(uint32_t ranks, uint64_t seed, uint64_t step) {
  const Content content = TrainingContent(seed, step);
  JobState state;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    RankState& mine = state.emplace_back();
    for (const TensorBox& box : RowShards(TrainingTensors(), rank, ranks)) mine.AddTensor(box, content(box));
    mine.AddItem("rng", TrainingItem(rank, seed, step));
    mine.AddItem("empty", "");
  }
  return state;
}

CheckpointerOptions JobOptions(const std::string& server, const std::string& run,
                               const std::string& incarnation) {
  CheckpointerOptions options;
  options.server = server;
  options.run = run;
  options.incarnation = incarnation;
  options.threads = 2;
  options.pipeline_bytes = 16 << 20;
  options.save_timeout_ms = 60'000;
  return options;
}

absl::StatusOr<std::unique_ptr<Job>> Job::Open(CheckpointerOptions options, uint32_t ranks) {
  auto job = std::make_unique<Job>();
  options.world_size = ranks;
  for (options.rank = 0; options.rank < ranks; ++options.rank) {
    ESKER_ASSIGN_OR_RETURN(std::unique_ptr<Checkpointer> rank, Checkpointer::Open(options));
    job->ranks_.push_back(std::move(rank));
  }
  return job;
}

absl::StatusOr<std::vector<SaveHandle>> Job::Begin(uint64_t step, const JobState& state) {
  std::vector<SaveHandle> handles;
  for (uint32_t rank = 0; rank < ranks(); ++rank) {
    ESKER_ASSIGN_OR_RETURN(SaveHandle handle, ranks_[rank]->Save(step, state[rank].state()));
    handles.push_back(std::move(handle));
  }
  return handles;
}

absl::Status Job::Wait(const std::vector<SaveHandle>& handles) {
  absl::Status first;
  for (size_t rank = 0; rank < handles.size(); ++rank) {
    const absl::Status status = handles[rank].Wait();
    if (first.ok()) first = Annotate(status, absl::StrCat("rank ", rank));
  }
  return first;
}

absl::Status Job::Save(uint64_t step, const JobState& state) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<SaveHandle> handles, Begin(step, state));
  return Wait(handles);
}

std::string RestoreDifference(const std::string& server, const std::string& run, uint64_t step,
                              const std::vector<GlobalTensor>& tensors, uint32_t ranks, uint64_t seed) {
  return FindDifference(
      server, run, step, tensors, ranks, [seed](const TensorBox& box) { return BoxContent(box, seed); },
      [seed](uint32_t rank) { return ItemContent("rng", rank, kItemBytes, seed); });
}

std::string TrainingDifference(const std::string& server, const std::string& run, uint64_t step,
                               uint32_t ranks, uint64_t seed) {
  return FindDifference(server, run, step, TrainingTensors(), ranks, TrainingContent(seed, step),
                        [&](uint32_t rank) { return TrainingItem(rank, seed, step); });
}

}  // namespace esker::testing
