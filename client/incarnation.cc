#include "client/incarnation.h"

#include <unistd.h>

#include <cstdint>
#include <random>

#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

// Different in each process and at each call.
std::string RandomToken() {
  std::random_device random;
  return absl::StrFormat("random-%08x%08x-%d", random(), random(), ::getpid());
}

absl::StatusOr<std::string> Checked(std::string token, std::string_view source) {
  ESKER_RETURN_IF_ERROR(Annotate(ValidateIncarnation(token), source));
  return token;
}

}  // namespace

absl::StatusOr<std::string> ChooseIncarnation(const std::string& given, uint32_t world_size,
                                              const std::function<const char*(const char*)>& getenv) {
  const auto variable = [&](const char* name) {
    const char* value = getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (!given.empty()) return Checked(given, "CheckpointerOptions::incarnation");
  if (const std::string own = variable("ESKER_INCARNATION"); !own.empty())
    return Checked(own, "ESKER_INCARNATION");
  if (const std::string run = variable("TORCHELASTIC_RUN_ID"); !run.empty() && run != "none") {
    return Checked(StrCat("torchelastic-", run, "-", variable("TORCHELASTIC_RESTART_COUNT")),
                   "TORCHELASTIC_RUN_ID");
  }
  if (const std::string job = variable("SLURM_JOB_ID"); !job.empty()) {
    // Slurm sets the count from the first restart on.
    const std::string restarts = variable("SLURM_RESTART_COUNT");
    return Checked(StrCat("slurm-", job, "-", restarts.empty() ? "0" : restarts), "SLURM_JOB_ID");
  }
  if (world_size == 1) return RandomToken();
  return absl::InvalidArgumentError(
      StrCat("incarnation: none given, and none of ESKER_INCARNATION, TORCHELASTIC_RUN_ID and SLURM_JOB_ID "
             "is set; with ",
             world_size,
             " ranks, set ESKER_INCARNATION to a value that is the same on all ranks and new at each start "
             "of the job"));
}

}  // namespace esker
