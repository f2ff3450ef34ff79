// A rank that dies the moment Save has returned: dying_rank SERVER RUN INCARNATION RANK RANKS STEP SEED WHEN.
// WHEN: "after" (SIGKILL as soon as Save returned), "while" (SIGKILL while Save copies) or "delta" ("after",
// with the training state of the step before saved first, of which this one is stored as a delta).
#include "tests/integration/dying_rank.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "esker/esker.h"

namespace esker::testing {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "dying_rank: %s\n", status.ToString().c_str());
  return 1;
}

uint64_t Number(const char* text) {
  uint64_t number = 0;
  return absl::SimpleAtoi(text, &number) ? number : 0;
}

int Run(char** arguments) {
  const uint64_t rank = Number(arguments[4]);
  const uint64_t ranks = Number(arguments[5]);
  const uint64_t step = Number(arguments[6]);
  const uint64_t seed = Number(arguments[7]);
  const bool while_copying = std::string(arguments[8]) == "while";
  const bool as_delta = std::string(arguments[8]) == "delta";
  const JobState state = as_delta ? MakeTrainingState(static_cast<uint32_t>(ranks), seed, step)
                                  : MakeJobState(DyingTensors(), static_cast<uint32_t>(ranks), seed);
  CheckpointerOptions options = JobOptions(arguments[1], arguments[2], arguments[3]);
  options.rank = static_cast<uint32_t>(rank);
  options.world_size = static_cast<uint32_t>(ranks);
  options.transport = Transport::kSharedMemory;
  if (as_delta) options.compression = Compression::kDelta;
  const absl::StatusOr<std::unique_ptr<Checkpointer>> checkpointer = Checkpointer::Open(options);
  if (!checkpointer.ok()) return Fail(checkpointer.status());
  if (as_delta) {
    const JobState before = MakeTrainingState(static_cast<uint32_t>(ranks), seed, step - 1);
    const absl::StatusOr<SaveHandle> base = (*checkpointer)->Save(step - 1, before[rank].state());
    if (!base.ok()) return Fail(base.status());
    if (const absl::Status saved = base->Wait(); !saved.ok()) return Fail(saved);
  }
  std::thread killer;
  if (while_copying) {
    killer = std::thread([seed] {
      std::this_thread::sleep_for(std::chrono::microseconds(seed * 3701 % 40'000));
      ::kill(::getpid(), SIGKILL);
    });
  }
  const absl::StatusOr<SaveHandle> handle = (*checkpointer)->Save(step, state[rank].state());
  if (!handle.ok()) return Fail(handle.status());
  ::kill(::getpid(), SIGKILL);
  return 1;
}

}  // namespace
}  // namespace esker::testing

int main(int argc, char** argv) { return argc == 9 ? esker::testing::Run(argv) : 2; }
