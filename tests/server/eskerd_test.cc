// The daemon as a process: its exit codes, its last words, and its end by signal.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "format/base/text.h"
#include "format/proto/service.grpc.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// One eskerd. Killed at the end if it still runs.
class Daemon {
 public:
  // `log`: where its stderr goes.
  Daemon(const std::vector<std::string>& arguments, std::string log) : log_(std::move(log)) {
    const char* const directory = std::getenv("ESKER_BIN_DIR");
    const std::string program = StrCat(directory != nullptr ? directory : "build/release/bin", "/eskerd");
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0644);
    EXPECT_EQ(::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ), 0) << program;
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Daemon() {
    if (pid_ == 0) return;
    Signal(SIGKILL);
    (void)ExitCode();
  }

  void Signal(int signal) { ::kill(pid_, signal); }
  // Waits for its end. -1 if a signal ended it.
  int ExitCode() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string log() const { return ReadFile(log_); }

 private:
  const std::string log_;
  pid_t pid_ = 0;
};

class EskerdTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(std::vector<std::string> more = {}) {
    std::vector<std::string> all = {"--data",      directory_ / "data", "--listen",          "127.0.0.1:0",
                                    "--port-file", directory_ / "port", "--buffer-pool-mib", "16"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // Waits for the port file; 0 if it does not come within a minute.
  int AwaitPort() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (std::chrono::steady_clock::now() < deadline) {
      if (const std::string text = ReadFile(directory_ / "port"); !text.empty()) return std::stoi(text);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return 0;
  }
  absl::Status AskStatus(int port) {
    const auto channel = grpc::CreateChannel(StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    v1::StatusResponse response;
    const grpc::Status status = v1::Store::NewStub(channel)->Status(&context, {}, &response);
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }

  // Whether nobody holds a lock on a file that is there.
  static bool IsUnlocked(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const bool taken = ::flock(fd, LOCK_SH | LOCK_NB) == 0;
    ::close(fd);
    return taken;
  }

  const testing::TempDir directory_;
};

TEST_F(EskerdTest, ServesAndStopsOnSigterm) {
  for (const int signal : {SIGTERM, SIGINT}) {
    std::filesystem::remove(directory_ / "port");
    Daemon daemon(Arguments(), directory_ / "log");
    const int port = AwaitPort();
    ASSERT_GT(port, 0) << daemon.log();
    EXPECT_OK(AskStatus(port));
    EXPECT_THAT(daemon.log(),
                HasSubstr(StrCat("serves 127.0.0.1:", port, " from ", directory_ / "data", ", store ")));
    daemon.Signal(signal);
    EXPECT_EQ(daemon.ExitCode(), 0) << daemon.log();
    EXPECT_THAT(daemon.log(), HasSubstr("stopped"));
  }
}

TEST_F(EskerdTest, WrongUsageIsExitCodeTwo) {
  Daemon daemon({"--data", directory_ / "data", "--colour", "red"}, directory_ / "log");
  EXPECT_EQ(daemon.ExitCode(), 2);
  EXPECT_THAT(daemon.log(), HasSubstr("eskerd: "));
  EXPECT_THAT(daemon.log(), HasSubstr("--colour"));
  EXPECT_FALSE(std::filesystem::exists(directory_ / "data"));
}

TEST_F(EskerdTest, ALockedDirectoryIsRefusedInOneLine) {
  Daemon first(Arguments(), directory_ / "log");
  ASSERT_GT(AwaitPort(), 0) << first.log();
  Daemon second({"--data", directory_ / "data", "--listen", "127.0.0.1:0"}, directory_ / "second.log");
  EXPECT_EQ(second.ExitCode(), 1);
  const std::string log = second.log();
  EXPECT_THAT(log, HasSubstr(StrCat("eskerd: ")));
  EXPECT_THAT(log, HasSubstr("in use"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
}

TEST_F(EskerdTest, APortInUseIsRefused) {
  Daemon first(Arguments(), directory_ / "log");
  const int port = AwaitPort();
  ASSERT_GT(port, 0) << first.log();
  Daemon second(
      {"--data", directory_ / "second", "--listen", StrCat("127.0.0.1:", port), "--buffer-pool-mib", "16"},
      directory_ / "second.log");
  EXPECT_EQ(second.ExitCode(), 1);
  EXPECT_THAT(second.log(),
              HasSubstr(StrCat("eskerd: can't listen on 127.0.0.1:", port, ": Address already in use")));
  // gRPC's own account of it stays away.
  EXPECT_THAT(second.log(), Not(HasSubstr("grpc")));
}

TEST_F(EskerdTest, ADirectoryThatCantBeMadeIsRefused) {
  std::ofstream(directory_ / "file") << "not a directory";
  Daemon daemon({"--data", directory_ / "file", "--listen", "127.0.0.1:0"}, directory_ / "log");
  EXPECT_EQ(daemon.ExitCode(), 1);
  EXPECT_THAT(daemon.log(), HasSubstr(directory_ / "file"));
}

TEST_F(EskerdTest, APortFileThatCantBeWrittenIsAnError) {
  Daemon daemon(Arguments({"--port-file", directory_ / "no/such/directory/port"}), directory_ / "log");
  EXPECT_EQ(daemon.ExitCode(), 2);  // given twice
  Daemon other({"--data", directory_ / "data", "--listen", "127.0.0.1:0", "--buffer-pool-mib", "16",
                "--port-file", directory_ / "no/such/directory/port"},
               directory_ / "other.log");
  EXPECT_EQ(other.ExitCode(), 1);
  EXPECT_THAT(other.log(), HasSubstr("--port-file: can't write"));
}

TEST_F(EskerdTest, LeavesItsAddressWhileItServes) {
  const std::string path = directory_ / "data/ADDRESS";
  {
    Daemon killed(Arguments(), directory_ / "log");
    const int port = AwaitPort();
    EXPECT_EQ(ReadFile(path), StrCat("127.0.0.1:", port, "\n")) << killed.log();
    EXPECT_FALSE(IsUnlocked(path));
  }
  EXPECT_TRUE(IsUnlocked(path));
  std::filesystem::remove(directory_ / "port");
  Daemon stopped(Arguments(), directory_ / "log");
  const int port = AwaitPort();
  EXPECT_EQ(ReadFile(path), StrCat("127.0.0.1:", port, "\n")) << stopped.log();
  EXPECT_FALSE(IsUnlocked(path));
  stopped.Signal(SIGTERM);
  EXPECT_EQ(stopped.ExitCode(), 0);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(EskerdTest, StopsWhenItsLastUserIsGone) {
  const std::string users = directory_ / "USERS";
  const int user = ::open(users.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  ASSERT_EQ(::flock(user, LOCK_SH), 0);
  Daemon daemon(Arguments({"--users-file", users}), directory_ / "log");
  const int port = AwaitPort();
  ASSERT_GT(port, 0) << daemon.log();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_OK(AskStatus(port));
  ::close(user);
  EXPECT_EQ(daemon.ExitCode(), 0);
  EXPECT_THAT(daemon.log(), HasSubstr(StrCat("no process holds a lock on ", users)));
  EXPECT_THAT(daemon.log(), HasSubstr("stopped"));
}

TEST_F(EskerdTest, AUsersFileThatCantBeMadeIsAnError) {
  Daemon daemon(Arguments({"--users-file", directory_ / "no/such/file"}), directory_ / "log");
  EXPECT_EQ(daemon.ExitCode(), 1);
  EXPECT_THAT(daemon.log(), HasSubstr(StrCat("--users-file: opening ", directory_ / "no/such/file")));
}

TEST_F(EskerdTest, StartsAgainAfterSigkill) {
  {
    Daemon daemon(Arguments(), directory_ / "log");
    ASSERT_GT(AwaitPort(), 0) << daemon.log();
    daemon.Signal(SIGKILL);
    EXPECT_EQ(daemon.ExitCode(), -1);
  }
  std::filesystem::remove(directory_ / "port");
  Daemon daemon(Arguments(), directory_ / "log");
  const int port = AwaitPort();
  ASSERT_GT(port, 0) << daemon.log();
  EXPECT_OK(AskStatus(port));
}

}  // namespace
}  // namespace esker
