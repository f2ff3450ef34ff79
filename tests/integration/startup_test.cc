// eskerd that can't start says why, and ends with exit code 1.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

constexpr uid_t kNobody = 65534;

class Startup : public ServerTest {
 protected:
  // Runs eskerd until it ends by itself.
  void ExpectRefusal(const std::vector<std::string>& flags, const std::vector<std::string>& words,
                     std::optional<uid_t> user = std::nullopt, int expected_exit_code = 1) {
    std::vector<std::string> command = {ProgramPath("eskerd")};
    command.insert(command.end(), flags.begin(), flags.end());
    ASSERT_OK_AND_ASSIGN(auto process,
                         ChildProcess::Start({command, dir_ / absl::StrCat("log.", ++runs_), {}, user}));
    const std::optional<int> exit_code = process->WaitExit(std::chrono::seconds(60));
    ASSERT_TRUE(exit_code.has_value()) << "it still runs:\n" << process->Log();
    EXPECT_EQ(*exit_code, expected_exit_code) << process->Log();
    for (const std::string& word : words) EXPECT_THAT(process->Log(), ::testing::HasSubstr(word));
    // One message, not a stack of them.
    EXPECT_THAT(process->Log(), ::testing::Not(::testing::HasSubstr("terminate called")));
  }
  std::string DataFlag() const { return "--data=" + dir_ / "data"; }

  int runs_ = 0;
};

const std::string kAnyPort = "--listen=127.0.0.1:0";

TEST_F(Startup, ADirectoryThatAnotherServerHoldsIsRefused) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  ExpectRefusal({DataFlag(), kAnyPort}, {dir_ / "data", absl::StrCat("pid ", server_->process()->pid())});
  // The one that holds it goes on.
  ASSERT_OK(client_->ServerStatus());
}

TEST_F(Startup, ADirectoryOfANewerFormatIsRefusedAndLeftAlone) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  EXPECT_EQ(server_->Stop(), 0);
  const std::string path = dir_ / "data/FORMAT";
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  // The version is the first number in the file.
  std::string newer = text.str();
  const size_t digits = newer.find_first_of("0123456789");
  ASSERT_NE(digits, std::string::npos);
  newer.replace(digits, newer.find_first_not_of("0123456789", digits) - digits, "99");
  std::ofstream(path, std::ios::trunc) << newer;

  ExpectRefusal({DataFlag(), kAnyPort}, {"99", "newer"});
  std::stringstream after;
  after << std::ifstream(path).rdbuf();
  EXPECT_EQ(after.str(), newer);
  std::ofstream(path, std::ios::trunc) << text.str();
  ASSERT_OK(server_->Start());
}

TEST_F(Startup, ADirectoryWithoutPermissionIsRefused) {
  std::filesystem::permissions(dir_.path(), std::filesystem::perms(0755));
  ASSERT_EQ(::mkdir((dir_ / "data").c_str(), 0500), 0);
  if (::geteuid() != 0) {
    ExpectRefusal({DataFlag(), kAnyPort}, {dir_ / "data", "ermission denied"});
    return;
  }
  // Root may write everywhere: so as somebody else, if that one may run the program.
  ASSERT_OK_AND_ASSIGN(
      auto probe,
      ChildProcess::Start({{"/usr/bin/test", "-x", ProgramPath("eskerd")}, dir_ / "probe", {}, kNobody}));
  if (probe->WaitExit(std::chrono::seconds(20)) != 0)
    GTEST_SKIP() << "another user can't reach " << ProgramPath("eskerd");
  ExpectRefusal({DataFlag(), kAnyPort}, {dir_ / "data", "ermission denied"}, kNobody);
}

TEST_F(Startup, ADataPathThatIsAFileIsRefused) {
  std::ofstream(dir_ / "data") << "not a directory";
  ExpectRefusal({DataFlag(), kAnyPort}, {dir_ / "data", "irectory"});
}

TEST_F(Startup, APortInUseIsRefused) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener, 1), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const std::string port = absl::StrCat(ntohs(address.sin_port));
  ExpectRefusal({DataFlag(), "--listen=127.0.0.1:" + port}, {port, "use"});
  ::close(listener);
}

// What can be told from the command line alone is exit code 2.
TEST_F(Startup, WrongFlagsAreRefused) {
  ExpectRefusal({DataFlag(), "--listen=nowhere"}, {"nowhere"}, std::nullopt, 2);
  ExpectRefusal({DataFlag(), "--no-such-flag"}, {"no-such-flag"}, std::nullopt, 2);
  ExpectRefusal({DataFlag(), "--segment-mib=1"}, {"segment-mib", "16"}, std::nullopt, 2);
  ExpectRefusal({}, {"--data"}, std::nullopt, 2);
}

TEST_F(Startup, ADirectoryIsMadeIfThereIsNone) {
  ServerProcess::Options options;
  options.data_directory = dir_ / "made";
  ASSERT_NO_FATAL_FAILURE(StartServer(options));
  EXPECT_TRUE(std::filesystem::exists(dir_ / "made/FORMAT"));
}

TEST_F(Startup, TheServerKeepsItsIdentityOverRestarts) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse first, client_->ServerStatus());
  server_->Kill();
  ASSERT_OK(server_->Start());
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse second, RawClient(server_->address()).ServerStatus());
  EXPECT_EQ(first.server_id(), second.server_id());
  EXPECT_FALSE(first.server_id().empty());
}

}  // namespace
}  // namespace esker::testing
