// One training job and its operator under test: random saves, restores, deletions, pins and garbage
// collections of one run, with a model of what must, may and must not be there.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "esker/esker.h"
#include "tests/integration/job.h"
#include "tests/integration/raw_client.h"

namespace esker::testing {

// What was saved as one checkpoint. Tensor "own" is new in each, "frozen" is one of a few that all runs
// share, so that chunks have many references.
struct CheckpointContent {
  uint64_t own_seed = 0;
  uint64_t own_rows = 0;
  uint64_t frozen_seed = 0;
  uint64_t frozen_rows = 0;
  uint32_t ranks = 0;

  bool operator==(const CheckpointContent&) const = default;
  // The item "content" of rank 0, which says what to expect in the rest.
  std::string ToText() const;
  uint64_t bytes() const;
};

// All calls come from one thread at a time.
class RunWorker {
 public:
  struct Counts {
    uint64_t saves_acknowledged = 0;
    uint64_t saves_failed = 0;
    // Checkpoints that may be there, or not: a save or a deletion of them failed.
    uint64_t doubtful_found = 0;
    uint64_t doubtful_absent = 0;
    uint64_t checkpoints_restored = 0;
    uint64_t bytes_restored = 0;
    uint64_t deletions = 0;
    uint64_t parts_collected = 0;
  };

  RunWorker(std::string server, std::string run, uint64_t seed);

  // One random operation. The server may be killed and started again meanwhile: then it may fail, but never
  // wrongly.
  void Operate();

  // With the server up and nothing under way: what is listed agrees with the model, and what is doubtful, and
  // `samples` others, restore bit for bit. Afterwards nothing is doubtful.
  void Verify(size_t samples);
  // And deletes everything.
  void DeleteAll();

  // What went wrong, for good.
  const std::vector<std::string>& violations() const { return violations_; }
  const Counts& counts() const { return counts_; }

 private:
  // What may be there at one step.
  struct Expectation {
    std::vector<CheckpointContent> possible;  // one of these
    bool may_be_absent = false;
    bool pinned = false;
    bool pin_is_known = true;
    uint64_t attempt = 0;  // the newest that tried to save it
  };
  using Model = std::map<uint64_t, Expectation>;

  bool OpenJob();
  void Save();
  void RestoreSome();
  void Delete();
  void TogglePin();
  void Collect();
  void CollectByPolicy();

  // kOk, or an error that only says that the server was away; everything else is a violation.
  bool IsOkOrAway(const absl::Status& status, const std::string& what);
  void CheckListed(const v1::ListCheckpointsResponse& listed);
  // Restores and compares; narrows the expectation down to what it found.
  absl::Status RestoreAndCompare(uint64_t step, Expectation& expected);
  absl::Status CompareTensors(CheckpointReader& checkpoint, const CheckpointContent& content);
  Model::iterator RandomEntry();
  void Violation(const std::string& what);

  const std::string server_;
  const std::string run_;
  std::mt19937_64 random_;
  std::unique_ptr<RawClient> client_;
  std::unique_ptr<Job> job_;
  // A save failed and may still be under way on the server: only a new attempt settles it.
  bool fence_needed_ = true;
  bool impatient_ = false;  // the job's saves time out so early that they may fail
  uint64_t incarnations_ = 0;
  uint64_t next_step_ = 1;
  Model model_;
  std::vector<std::string> violations_;
  Counts counts_;
};

}  // namespace esker::testing
