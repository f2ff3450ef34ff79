#include "tests/integration/process_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "format/base/status.h"

namespace esker::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kStartTimeout{60'000};  // sanitizers and recovery included

std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int LeftMillis(steady_clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left);
}

// Wakes when files in a directory change.
class DirectoryWatch {
 public:
  explicit DirectoryWatch(const std::string& directory) : fd_(inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
    ESKER_CHECK(fd_ >= 0);
    ESKER_CHECK(
        inotify_add_watch(fd_, directory.c_str(), IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO) >= 0);
  }
  ~DirectoryWatch() { ::close(fd_); }
  DirectoryWatch(const DirectoryWatch&) = delete;
  DirectoryWatch& operator=(const DirectoryWatch&) = delete;

  // Until something changed, the process ended, or the deadline passed.
  void Wait(int process_end_event, steady_clock::time_point deadline) {
    pollfd events[2] = {{fd_, POLLIN, 0}, {process_end_event, POLLIN, 0}};
    ::poll(events, 2, LeftMillis(deadline));
    char drained[4096];
    while (::read(fd_, drained, sizeof(drained)) > 0) {
    }
  }

 private:
  const int fd_;
};

// Between fork and exec: only async-signal-safe calls, because the test has other threads.
[[noreturn]] void BecomeProgram(char* const* arguments, char* const* environment, int log,
                                const std::optional<uid_t>& user, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(126);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  if (user.has_value()) {
    if (setgid(*user) != 0 || setuid(*user) != 0) _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // changing the user clears it
  }
  execve(arguments[0], arguments, environment);
  _exit(127);
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

std::string ProgramPath(const std::string& name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

std::string SampleText() { return ESKER_SOURCE_DIR "/LICENSE"; }

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const Options& options) {
  std::vector<std::string> arguments = options.command;
  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (options.environment.count(text.substr(0, text.find('='))) == 0) environment.push_back(text);
  }
  for (const auto& [name, value] : options.environment) environment.push_back(absl::StrCat(name, "=", value));
  const std::vector<char*> argument_pointers = Pointers(arguments);
  const std::vector<char*> environment_pointers = Pointers(environment);

  const int log = ::open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return absl::InternalError(absl::StrCat("log ", options.log_path, ": ", strerror(errno)));
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0)
    BecomeProgram(argument_pointers.data(), environment_pointers.data(), log, options.user, parent);
  const int fork_errno = errno;
  ::close(log);
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", strerror(fork_errno)));
  const int pidfd =
      static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));  // pidfd_open of glibc 2.36 is not for C++
  ESKER_CHECK(pidfd >= 0);
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, pidfd, options.log_path));
}

ChildProcess::ChildProcess(pid_t pid, int pidfd, std::string log_path)
    : pid_(pid), pidfd_(pidfd), log_path_(std::move(log_path)) {}

ChildProcess::~ChildProcess() {
  Kill();
  ::close(pidfd_);
}

void ChildProcess::Signal(int signal) {
  if (!exit_code_.has_value()) ::kill(pid_, signal);
}

void ChildProcess::Freeze() {
  Signal(SIGSTOP);
  siginfo_t frozen{};
  while (::waitid(P_PID, static_cast<id_t>(pid_), &frozen, WSTOPPED | WEXITED | WNOWAIT) != 0 &&
         errno == EINTR) {
  }
}

void ChildProcess::Kill() {
  Signal(SIGKILL);
  WaitExit(milliseconds(-1));
}

std::optional<int> ChildProcess::WaitExit(milliseconds timeout) {
  if (exit_code_.has_value()) return exit_code_;
  pollfd event{pidfd_, POLLIN, 0};
  if (::poll(&event, 1, static_cast<int>(timeout.count())) <= 0) return std::nullopt;
  int status = 0;
  ESKER_CHECK(::waitpid(pid_, &status, 0) == pid_);
  exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return exit_code_;
}

std::string ChildProcess::Log() const { return ReadWholeFile(log_path_); }

absl::Status ChildProcess::WaitForLog(const std::string& text, milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  DirectoryWatch watch(std::filesystem::path(log_path_).parent_path());
  while (true) {
    const bool ended = !Running();  // asked first: what it wrote before its end is in the log below
    const std::string log = Log();
    if (log.find(text) != std::string::npos) return absl::OkStatus();
    if (ended)
      return absl::AbortedError(
          absl::StrCat("it ended (", *exit_code_, ") without '", text, "' in its log:\n", log));
    if (steady_clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("no '", text, "' in its log:\n", log));
    }
    watch.Wait(pidfd_, deadline);
  }
}

ServerProcess::ServerProcess(Options options)
    : options_(std::move(options)), scratch_(options_.data_directory + ".server") {
  std::filesystem::create_directories(scratch_);
}

ServerProcess::~ServerProcess() {
  process_.reset();
  std::error_code ignored;  // the test's temporary directory is removed as a whole anyway
  std::filesystem::remove_all(scratch_, ignored);
}

std::vector<std::string> ServerProcess::Command() const {
  return {ProgramPath("eskerd"),
          "--data=" + options_.data_directory,
          "--listen=" + (address_.empty() ? "127.0.0.1:0" : address_),
          "--port-file=" + scratch_ + "/port",
          "--disk-engine=" + options_.engine,
          absl::StrCat("--segment-mib=", options_.segment_mib),
          absl::StrCat("--buffer-pool-mib=", options_.buffer_pool_mib),
          absl::StrCat("--recycle-mib=", options_.recycle_mib),
          absl::StrCat("--min-free-mib=", options_.min_free_mib),
          "--read-lease-ttl=" + options_.read_lease_ttl,
          "--save-timeout=" + options_.save_timeout,
          "--gc-interval=" + options_.gc_interval};
}

absl::Status ServerProcess::Start() {
  ESKER_RETURN_IF_ERROR(Launch());
  return AwaitReady();
}

absl::Status ServerProcess::Launch() {
  process_.reset();
  std::error_code ignored;  // there is none before the first start
  std::filesystem::remove(scratch_ + "/port", ignored);
  if (options_.user.has_value()) {
    ESKER_CHECK(::chown(scratch_.c_str(), *options_.user, *options_.user) == 0);
  }
  ESKER_ASSIGN_OR_RETURN(process_, ChildProcess::Start({Command(), scratch_ + "/log", {}, options_.user}));
  return absl::OkStatus();
}

absl::Status ServerProcess::AwaitReady() {
  const auto deadline = steady_clock::now() + kStartTimeout;
  DirectoryWatch watch(scratch_);
  while (true) {
    const std::string port = ReadWholeFile(scratch_ + "/port");
    if (!port.empty() && port.back() == '\n') {
      address_ = absl::StrCat("127.0.0.1:", std::string(absl::StripSuffix(port, "\n")));
      return absl::OkStatus();
    }
    if (!process_->Running()) {
      return absl::AbortedError(
          absl::StrCat("eskerd ended with ", *process_->WaitExit(milliseconds(0)), ":\n", Log()));
    }
    if (steady_clock::now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("eskerd wrote no port file in ", kStartTimeout.count(), " ms:\n", Log()));
    }
    watch.Wait(process_->end_event(), deadline);
  }
}

bool ServerProcess::Serving() const { return !ReadWholeFile(scratch_ + "/port").empty(); }

void ServerProcess::Kill() { process_->Kill(); }

std::optional<int> ServerProcess::Stop() {
  process_->Signal(SIGTERM);
  const std::optional<int> exit_code = process_->WaitExit(milliseconds(20'000));
  if (!exit_code.has_value()) process_->Kill();
  return exit_code;
}

std::string ServerProcess::Log() const { return ReadWholeFile(scratch_ + "/log"); }

uint64_t ResidentBytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string word;
  while (status >> word) {
    uint64_t kilobytes = 0;
    if (word == "VmRSS:" && status >> kilobytes) return kilobytes << 10;
  }
  return 0;
}

uint64_t DiskBytes(const std::string& directory) {
  uint64_t bytes = 0;
  std::error_code error;  // files may vanish meanwhile
  std::filesystem::recursive_directory_iterator entry(directory, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    struct stat info;
    if (::lstat(entry->path().c_str(), &info) == 0) bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

}  // namespace esker::testing
