#include "tools/bench_server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "tools/files.h"

namespace esker {
namespace {

namespace fs = std::filesystem;

constexpr auto kStartTimeout = std::chrono::seconds(60);
constexpr auto kPollEvery = std::chrono::milliseconds(5);

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

absl::StatusOr<std::string> FindServerProgram() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return FileError(error.value(), "finding this program's own path");
  const std::string program = (self.parent_path() / "eskerd").string();
  if (::access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat(program, " is not there: build it, or name a running server with --server"));
  }
  return program;
}

// In the child, between fork and exec: only what is safe there.
[[noreturn]] void Exec(const std::vector<char*>& arguments, int log) {
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setpgid(0, 0);  // a terminal's Ctrl-C is for the benchmark, which then kills its server
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

}  // namespace

absl::Status BenchServer::Launch(const std::string& directory) {
  ESKER_ASSIGN_OR_RETURN(const std::string program, FindServerProgram());
  std::string scratch = absl::StrCat(directory, "/esker-bench-XXXXXX");
  MutexLock lock(&mu_);
  if (stopped_) return absl::CancelledError("interrupted");
  if (::mkdtemp(scratch.data()) == nullptr)
    return FileError(errno, StrCat("making a directory in ", directory));
  scratch_ = scratch;
  std::vector<std::string> texts = {program,       "--data",      scratch + "/data", "--listen",
                                    "127.0.0.1:0", "--port-file", scratch + "/port"};
  std::vector<char*> arguments;
  for (std::string& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  const int log = ::open((scratch + "/log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (log < 0) return FileError(errno, StrCat("creating ", scratch, "/log"));
  pid_ = ::fork();
  if (pid_ == 0) Exec(arguments, log);
  const int fork_error = errno;
  ::close(log);
  if (pid_ < 0) return FileError(fork_error, "starting eskerd");
  return absl::OkStatus();
}

absl::StatusOr<std::string> BenchServer::PollPort() {
  MutexLock lock(&mu_);
  if (stopped_) return absl::CancelledError("interrupted");
  int state = 0;
  if (::waitpid(pid_, &state, WNOHANG) == pid_) {
    pid_ = -1;
    const std::string log = ReadText(scratch_ + "/log");
    const size_t tail = log.size() > 400 ? log.size() - 400 : 0;
    return absl::InternalError(absl::StrCat("eskerd ended at its start: ", Printable(log.substr(tail), 500)));
  }
  std::string port = ReadText(scratch_ + "/port");
  if (port.empty() || port.back() != '\n') return std::string();
  port.pop_back();
  return port;
}

absl::Status BenchServer::Start(const std::string& directory) {
  ESKER_RETURN_IF_ERROR(Launch(directory));
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  while (std::chrono::steady_clock::now() < deadline) {
    ESKER_ASSIGN_OR_RETURN(const std::string port, PollPort());
    if (!port.empty()) {
      MutexLock lock(&mu_);
      address_ = absl::StrCat("127.0.0.1:", port);
      return absl::OkStatus();
    }
    std::this_thread::sleep_for(kPollEvery);
  }
  return absl::DeadlineExceededError("eskerd did not serve within 60 s");
}

std::string BenchServer::address() {
  MutexLock lock(&mu_);
  return address_;
}

std::string BenchServer::data_directory() {
  MutexLock lock(&mu_);
  return scratch_ + "/data";
}

void BenchServer::Stop() {
  MutexLock lock(&mu_);
  stopped_ = true;
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  std::error_code ignored;  // what can't be removed lies in a temporary directory
  if (!scratch_.empty()) fs::remove_all(scratch_, ignored);
  scratch_.clear();
}

}  // namespace esker
