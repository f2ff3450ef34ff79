#include "server/users_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using std::chrono::milliseconds;

class UsersWatchTest : public ::testing::Test {
 protected:
  // A lock that lasts until the descriptor is closed; -1 if it is refused.
  int Lock() const {
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (::flock(fd, LOCK_SH | LOCK_NB) == 0) return fd;
    ::close(fd);
    return -1;
  }
  bool AwaitCalls(int calls) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (calls_ < calls && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    return calls_ == calls;
  }

  const testing::TempDir directory_;
  const std::string path_ = directory_ / "USERS";
  std::atomic<int> calls_ = 0;
};

TEST_F(UsersWatchTest, CallsWhenTheLastUserIsGone) {
  const int first = Lock();
  ASSERT_OK_AND_ASSIGN(const auto watch, UsersWatch::Start(path_, [this] { ++calls_; }));
  const int second = Lock();
  ASSERT_GE(second, 0);
  ::close(first);
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(calls_, 0);
  ::close(second);
  EXPECT_TRUE(AwaitCalls(1));
}

TEST_F(UsersWatchTest, ANewUserWaitsForTheEnd) {
  ASSERT_OK_AND_ASSIGN(auto watch, UsersWatch::Start(path_, [this] { ++calls_; }));
  ASSERT_TRUE(AwaitCalls(1));
  EXPECT_EQ(Lock(), -1);
  watch.reset();
  const int user = Lock();
  EXPECT_GE(user, 0);
  ::close(user);
}

TEST_F(UsersWatchTest, EndsWhileThereAreUsers) {
  const int user = Lock();
  ASSERT_OK_AND_ASSIGN(auto watch, UsersWatch::Start(path_, [this] { ++calls_; }));
  watch.reset();
  ::close(user);
  EXPECT_EQ(calls_, 0);
}

TEST_F(UsersWatchTest, AFileThatCantBeMadeIsAnErrorThatNamesIt) {
  EXPECT_THAT(UsersWatch::Start(directory_ / "gone/USERS", [] {}).status().message(),
              ::testing::HasSubstr(directory_ / "gone/USERS"));
}

}  // namespace
}  // namespace esker
