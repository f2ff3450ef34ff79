#include "server/store/data_directory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "format/base/text.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::store {
namespace {

using esker::testing::TempDir;

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void WriteFile(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

TEST(DataDirectory, IsMadeWithItsParents) {
  const TempDir temp;
  const std::string path = temp / "a/b/store";
  ASSERT_OK_AND_ASSIGN(const auto directory, DataDirectory::Open(path));
  EXPECT_TRUE(directory->is_new());
  EXPECT_TRUE(std::filesystem::is_directory(directory->segments_path()));
  EXPECT_TRUE(std::filesystem::is_directory(directory->index_path()));
  EXPECT_EQ(ReadFile(path + "/FORMAT"),
            StrCat("esker-store 1\nid ", StoreIdText(directory->store_id()), "\n"));
}

TEST(DataDirectory, IdIsAUuidAndStays) {
  const TempDir temp;
  StoreId id;
  {
    ASSERT_OK_AND_ASSIGN(const auto directory, DataDirectory::Open(temp / "store"));
    id = directory->store_id();
    EXPECT_THAT(StoreIdText(id),
                ::testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                                        "[0-9a-f]{12}"));
  }
  ASSERT_OK_AND_ASSIGN(const auto directory, DataDirectory::Open(temp / "store"));
  EXPECT_FALSE(directory->is_new());
  EXPECT_EQ(directory->store_id(), id);
  ASSERT_OK_AND_ASSIGN(const auto other, DataDirectory::Open(temp / "other"));
  EXPECT_NE(other->store_id(), id);
}

TEST(DataDirectory, LockedDirectoryNamesHolder) {
  const TempDir temp;
  {
    ASSERT_OK_AND_ASSIGN(const auto directory, DataDirectory::Open(temp / "store"));
    EXPECT_STATUS(DataDirectory::Open(temp / "store"), absl::StatusCode::kFailedPrecondition,
                  StrCat("pid ", ::getpid(), ":"));
    // From another process, too.
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const auto refused = DataDirectory::Open(temp / "store");
      ::_exit(absl::IsFailedPrecondition(refused.status()) ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  EXPECT_OK(DataDirectory::Open(temp / "store"));
}

TEST(DataDirectory, ALockFileOfADeadProcessIsNoLock) {
  const TempDir temp;
  WriteFile(temp / "LOCK", "12345678\n");
  EXPECT_OK(DataDirectory::Open(temp.path()));
}

TEST(DataDirectory, NewerFormatIsRefused) {
  const TempDir temp;
  WriteFile(temp / "FORMAT", "esker-store 7\nsomething new\n");
  const absl::Status status = DataDirectory::Open(temp.path()).status();
  EXPECT_STATUS(status, absl::StatusCode::kFailedPrecondition, "format 7");
  EXPECT_STATUS(status, absl::StatusCode::kFailedPrecondition, "up to 1");
}

TEST(DataDirectory, DamagedFormatIsDataLoss) {
  for (const char* text :
       {"", "esker-store", "esker-store \n", "esker-store 0\n", "esker-store -1\n", "hello\n",
        "esker-store 1\n", "esker-store 1\nid \n", "esker-store 1\nid 00000000-0000-0000-0000-00000000000\n",
        "esker-store 1\nid 000000000000-0000-0000-0000-00000000\n",
        "esker-store 1\nid 00000000-0000-0000-0000-00000000000G\n"}) {
    const TempDir temp;
    SCOPED_TRACE(text);
    WriteFile(temp / "FORMAT", text);
    EXPECT_STATUS(DataDirectory::Open(temp.path()), absl::StatusCode::kDataLoss, temp / "FORMAT");
  }
}

TEST(DataDirectory, ADraftOfFormatIsNoFormat) {
  const TempDir temp;
  WriteFile(temp / "FORMAT.new", "esker-sto");  // a crash came before the rename
  ASSERT_OK_AND_ASSIGN(const auto directory, DataDirectory::Open(temp.path()));
  EXPECT_TRUE(directory->is_new());
}

TEST(DataDirectory, SegmentsWithoutFormatOrIndexAreDataLossAndNotANewStore) {
  const TempDir temp;
  { ASSERT_OK(DataDirectory::Open(temp.path())); }
  WriteFile(temp / "segments/segment-0000000000000001.esk", "data");
  EXPECT_STATUS(DataDirectory::Open(temp.path()), absl::StatusCode::kDataLoss, "index/CURRENT");
  WriteFile(temp / "index/CURRENT", "MANIFEST");
  EXPECT_OK(DataDirectory::Open(temp.path()));
  std::filesystem::remove(temp / "FORMAT");
  EXPECT_STATUS(DataDirectory::Open(temp.path()), absl::StatusCode::kDataLoss, "FORMAT");
  std::filesystem::remove(temp / "segments/segment-0000000000000001.esk");
  EXPECT_STATUS(DataDirectory::Open(temp.path()), absl::StatusCode::kDataLoss, "FORMAT");
}

TEST(DataDirectory, AFileInItsPlaceIsAnError) {
  const TempDir temp;
  WriteFile(temp / "store", "not a directory");
  const absl::Status status = DataDirectory::Open(temp / "store").status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(temp / "store"));
}

TEST(DataDirectory, NoPermissionIsSaidSo) {
  const TempDir temp;
  std::filesystem::create_directory(temp / "store");
  std::filesystem::permissions(temp / "store", std::filesystem::perms::owner_read);
  // As root permissions do not bind: give the rights up for the moment.
  const uid_t user = ::geteuid();
  ASSERT_TRUE(user != 0 || ::seteuid(65534) == 0);
  const absl::Status status = DataDirectory::Open(temp / "store").status();
  ASSERT_EQ(::seteuid(user), 0);
  EXPECT_STATUS(status, absl::StatusCode::kPermissionDenied, temp / "store");
  std::filesystem::permissions(temp / "store", std::filesystem::perms::owner_all);
}

}  // namespace
}  // namespace esker::store
