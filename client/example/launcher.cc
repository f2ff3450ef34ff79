#include "launcher.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "rank.h"

namespace esker::example {
namespace {

// How long ranks may take to end by themselves after a peer died.
constexpr int kGraceSeconds = 5;

pid_t StartRank(const Options& options, uint32_t rank, const std::string& incarnation, Exchange* exchange) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) {
    fprintf(stderr, "train: starting rank %u: %s\n", rank, strerror(errno));
    exit(1);
  }
  if (child > 0) return child;
  // Ranks don't outlive their launcher, however it ends.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  exit(RunRank(options, rank, incarnation, exchange));
}

std::string Describe(int wait_status) {
  if (WIFSIGNALED(wait_status)) return absl::StrCat("was killed by signal ", WTERMSIG(wait_status));
  return absl::StrCat("ended with exit code ", WEXITSTATUS(wait_status));
}

int ExitCode(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

// SIGALRM interrupts waitpid. It comes again and again, because one may come just before waitpid is called.
volatile sig_atomic_t grace_is_over = 0;
void OnAlarm(int) { grace_is_over = 1; }
void SetAlarm(int seconds) {
  const itimerval timer{{seconds > 0 ? 1 : 0, 0}, {seconds, 0}};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

// The processes of one incarnation.
class Incarnation {
 public:
  Incarnation(const Options& options, const std::string& name)
      : exchange_(Exchange::Create(options.hidden, options.ranks)) {
    for (uint32_t rank = 0; rank < options.ranks; ++rank)
      pids_.push_back(StartRank(options, rank, name, exchange_));
    printf("train: started %u ranks, pids %s\n", options.ranks, absl::StrJoin(pids_, " ").c_str());
    fflush(stdout);
  }
  ~Incarnation() { exchange_->Destroy(); }
  Incarnation(const Incarnation&) = delete;
  Incarnation& operator=(const Incarnation&) = delete;

  // Until all have ended. The exit code of the first that did not end well, or 0.
  int Wait() {
    int exit_code = 0;
    bool died = false;
    grace_is_over = 0;
    for (size_t running = pids_.size(); running > 0;) {
      int status = 0;
      const pid_t pid = waitpid(-1, &status, 0);
      if (pid < 0) {
        if (errno == EINTR && grace_is_over) KillAll();
        continue;
      }
      const auto found = std::find(pids_.begin(), pids_.end(), pid);
      if (found == pids_.end()) continue;
      *found = -1;
      --running;
      const int code = ExitCode(status);
      // A rank whose last save failed has trained to the end all the same, as will its peers.
      if (code == 0 || code == kLastSaveFailedExitCode) {
        if (!died) exit_code = std::max(exit_code, code);
        continue;
      }
      if (died) continue;
      died = true;
      exit_code = code;
      const uint32_t rank = static_cast<uint32_t>(found - pids_.begin());
      fprintf(stderr, "train: rank %u (pid %d) %s\n", rank, static_cast<int>(pid), Describe(status).c_str());
      exchange_->ReportDeath(rank);
      SetAlarm(kGraceSeconds);
    }
    SetAlarm(0);
    return exit_code;
  }

 private:
  void KillAll() {
    for (const pid_t pid : pids_) {
      if (pid > 0) kill(pid, SIGKILL);
    }
  }

  Exchange* const exchange_;
  std::vector<pid_t> pids_;  // -1: has ended
};

}  // namespace

int Launch(const Options& options) {
  struct sigaction action {};
  action.sa_handler = OnAlarm;  // without SA_RESTART, so that waitpid returns
  sigaction(SIGALRM, &action, nullptr);

  std::random_device random;
  const std::string job = absl::StrFormat("train-text-%08x%08x", random(), random());
  for (uint32_t restarts = 0;; ++restarts) {
    const int exit_code = Incarnation(options, absl::StrCat(job, ".", restarts)).Wait();
    if (exit_code == 0 || exit_code == kLastSaveFailedExitCode) {
      if (!options.final_state.empty() &&
          rename(UnfinishedFinalState(options).c_str(), options.final_state.c_str()) != 0) {
        fprintf(stderr, "train: renaming %s: %s\n", options.final_state.c_str(), strerror(errno));
        return 1;
      }
      return exit_code;
    }
    if (restarts == options.max_restarts) return exit_code;
    printf("train: restart %u of at most %u\n", restarts + 1, options.max_restarts);
    fflush(stdout);
  }
}

}  // namespace esker::example
