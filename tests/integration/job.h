// All ranks of a training job, as Checkpointers in this process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "esker/esker.h"
#include "tests/integration/test_state.h"

namespace esker::testing {

// What Save made of each tensor's boxes: states[rank].
using JobState = std::vector<RankState>;

// Row shards of `tensors`, and two items a rank: "rng" of 5000 bytes and "empty".
JobState MakeJobState(const std::vector<GlobalTensor>& tensors, uint32_t ranks, uint64_t seed);

// A model and its optimizer's state, of which little changes from step to step (TrainingContent): row shards,
// and the items "rng", longer with each step, and "empty".
const std::vector<GlobalTensor>& TrainingTensors();
JobState MakeTrainingState(uint32_t ranks, uint64_t seed, uint64_t step);

class Job {
 public:
  // Opens every rank; `options` says the server, run and incarnation.
  static absl::StatusOr<std::unique_ptr<Job>> Open(CheckpointerOptions options, uint32_t ranks);

  Checkpointer& rank(uint32_t rank) { return *ranks_[rank]; }
  uint32_t ranks() const { return static_cast<uint32_t>(ranks_.size()); }

  // Save on every rank, without waiting for the ends.
  absl::StatusOr<std::vector<SaveHandle>> Begin(uint64_t step, const JobState& state);
  // And waits for all. The first error, with the rank named.
  absl::Status Save(uint64_t step, const JobState& state);
  static absl::Status Wait(const std::vector<SaveHandle>& handles);

 private:
  std::vector<std::unique_ptr<Checkpointer>> ranks_;
};

// Restores row shards as `ranks` ranks would, one after the other, and their items if there are as many as
// were saved. Empty if all is as `seed` made it, else what differs or fails.
std::string RestoreDifference(const std::string& server, const std::string& run, uint64_t step,
                              const std::vector<GlobalTensor>& tensors, uint32_t ranks, uint64_t seed);

// The same for a checkpoint of MakeTrainingState.
std::string TrainingDifference(const std::string& server, const std::string& run, uint64_t step,
                               uint32_t ranks, uint64_t seed);

// Options with small limits, for tests.
CheckpointerOptions JobOptions(const std::string& server, const std::string& run,
                               const std::string& incarnation);

}  // namespace esker::testing
