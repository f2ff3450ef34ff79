#include "server/store/file_cache.h"

#include <filesystem>
#include <string>

#include "format/segment_header.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::store {
namespace {

class FileCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(disk_, OpenDisk(directory_.path(), DiskEngine::kThreadPool));
    for (uint64_t id = 1; id <= 6; ++id)
      ASSERT_OK(disk_->Open(SegmentFileName(id), Disk::OpenMode::kCreateNew));
  }
  // How many of the directory's files this process has open.
  int OpenFiles() const {
    int open = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const std::filesystem::path target = std::filesystem::read_symlink(entry.path(), error);
      if (!error && target.string().starts_with(directory_ / "segment-")) ++open;
    }
    return open;
  }

  esker::testing::TempDir directory_;
  std::unique_ptr<Disk> disk_;
};

TEST_F(FileCacheTest, KeepsOnlySoManyOpen) {
  FileCache cache(disk_.get(), 3);
  for (uint64_t id = 1; id <= 6; ++id) ASSERT_OK(cache.Get(id));
  EXPECT_EQ(OpenFiles(), 3);
}

TEST_F(FileCacheTest, ClosesTheOneLongestUnused) {
  FileCache cache(disk_.get(), 2);
  ASSERT_OK(cache.Get(1));
  ASSERT_OK(cache.Get(2));
  ASSERT_OK(cache.Get(1));
  ASSERT_OK(cache.Get(3));
  std::filesystem::remove(directory_ / SegmentFileName(1));
  std::filesystem::remove(directory_ / SegmentFileName(2));
  EXPECT_OK(cache.Get(1));
  EXPECT_STATUS(cache.Get(2), absl::StatusCode::kNotFound, SegmentFileName(2));
}

TEST_F(FileCacheTest, WhatIsInUseStaysOpen) {
  FileCache cache(disk_.get(), 1);
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<DiskFile> first, cache.Get(1));
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<DiskFile> second, cache.Get(2));
  EXPECT_EQ(OpenFiles(), 2);
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<DiskFile> again, cache.Get(1));
  EXPECT_EQ(again, first);
  first = second = again = nullptr;
  ASSERT_OK(cache.Get(3));
  EXPECT_EQ(OpenFiles(), 1);
}

TEST_F(FileCacheTest, DropLetsGo) {
  FileCache cache(disk_.get(), 3);
  ASSERT_OK(cache.Get(1));
  cache.Drop(1);
  cache.Drop(1);
  EXPECT_EQ(OpenFiles(), 0);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<DiskFile> made,
                       disk_->Open(SegmentFileName(9), Disk::OpenMode::kCreateNew));
  const DiskFile* const file = made.get();
  cache.Insert(9, std::move(made));
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<DiskFile> found, cache.Get(9));
  EXPECT_EQ(found.get(), file);
}

}  // namespace
}  // namespace esker::store
