#include "server/address_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

class AddressFileTest : public ::testing::Test {
 protected:
  std::string path() const { return directory_ / "ADDRESS"; }
  std::string Line() const {
    std::string line;
    std::ifstream file(path());
    std::getline(file, line);
    return line;
  }
  // As a process would that looks for a server to join.
  bool ServerLives() const {
    const int fd = ::open(path().c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool refused = ::flock(fd, LOCK_SH | LOCK_NB) != 0;
    ::close(fd);
    return refused;
  }

  const testing::TempDir directory_;
};

TEST_F(AddressFileTest, IsThereAndLockedUntilItsEnd) {
  ASSERT_OK_AND_ASSIGN(auto file, AddressFile::Write(directory_.path(), "127.0.0.1:7070"));
  EXPECT_EQ(Line(), "127.0.0.1:7070");
  EXPECT_TRUE(ServerLives());
  file.reset();
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(AddressFileTest, TakesThePlaceOfWhatAKilledServerLeft) {
  std::ofstream(path()) << "127.0.0.1:1\n";
  EXPECT_FALSE(ServerLives());
  ASSERT_OK_AND_ASSIGN(const auto file, AddressFile::Write(directory_.path(), "127.0.0.1:7071"));
  EXPECT_EQ(Line(), "127.0.0.1:7071");
  EXPECT_TRUE(ServerLives());
}

TEST_F(AddressFileTest, ADirectoryThatIsNotThereIsAnErrorThatNamesIt) {
  EXPECT_THAT(AddressFile::Write(directory_ / "gone", "127.0.0.1:7070").status().message(),
              ::testing::HasSubstr(directory_ / "gone"));
}

}  // namespace
}  // namespace esker
