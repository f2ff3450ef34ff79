#include "server/catalog/rocks_catalog.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "tests/server/catalog/catalog_conformance.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

class RocksCatalogData final : public CatalogData {
 public:
  std::unique_ptr<Catalog> Open() override {
    absl::StatusOr<std::unique_ptr<Catalog>> catalog = OpenRocksCatalog(directory_ / "catalog");
    EXPECT_OK(catalog);
    return std::move(catalog).value();
  }

 private:
  TempDir directory_;
};

INSTANTIATE_TEST_SUITE_P(Rocks, CatalogConformance,
                         ::testing::Values(CatalogImplementation{
                             "Rocks", [] { return std::make_unique<RocksCatalogData>(); }}),
                         [](const auto& info) { return info.param.name; });

void Put(Catalog* catalog, const std::string& key, const std::string& value) {
  const absl::StatusOr<bool> applied = catalog->CompareAndSet({}, {{key, value}});
  ASSERT_TRUE(applied.ok() && *applied) << applied.status();
}

// The files of the directory whose names end in `suffix`.
std::vector<std::filesystem::path> FilesOf(const std::string& directory, const std::string& suffix) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().filename().string().ends_with(suffix)) files.push_back(entry.path());
  }
  return files;
}

void FlipByte(const std::filesystem::path& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  ASSERT_TRUE(file.is_open()) << path;
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get());
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ 0x40));
  ASSERT_TRUE(file.good());
}

TEST(RocksCatalog, ASecondOpenIsRefused) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(directory / "catalog"));
  EXPECT_STATUS(OpenRocksCatalog(directory / "catalog"), absl::StatusCode::kFailedPrecondition,
                "open elsewhere");
}

// While it lives, permissions hold for this process even if it is root's.
class AsNobody {
 public:
  AsNobody() { ESKER_CHECK(user_ != 0 || ::seteuid(65534) == 0); }
  ~AsNobody() { ESKER_CHECK(::seteuid(user_) == 0); }

 private:
  const uid_t user_ = ::geteuid();
};

TEST(RocksCatalog, ADirectoryWithoutPermissionIsSaidSo) {
  const TempDir directory;
  std::filesystem::permissions(directory.path(), std::filesystem::perms::owner_read);
  {
    const AsNobody nobody;
    EXPECT_STATUS(OpenRocksCatalog(directory / "catalog"), absl::StatusCode::kPermissionDenied,
                  "Permission denied");
  }
  std::filesystem::permissions(directory.path(), std::filesystem::perms::owner_all);
  ASSERT_OK(OpenRocksCatalog(directory / "catalog"));
  std::filesystem::permissions(directory / "catalog", std::filesystem::perms::owner_read);
  {
    const AsNobody nobody;
    EXPECT_STATUS(OpenRocksCatalog(directory / "catalog"), absl::StatusCode::kPermissionDenied,
                  "Permission denied");
  }
  std::filesystem::permissions(directory / "catalog", std::filesystem::perms::owner_all);
}

TEST(RocksCatalog, AFileInPlaceOfTheDirectoryIsAnError) {
  const TempDir directory;
  std::ofstream(directory / "catalog") << "not a directory";
  const auto opened = OpenRocksCatalog(directory / "catalog");
  EXPECT_FALSE(opened.ok());
  EXPECT_THAT(std::string(opened.status().message()), ::testing::HasSubstr(directory / "catalog"));
}

// Damage before the end of the log must not pass as a log that is cut short: that would silently lose what
// was acknowledged.
TEST(RocksCatalog, ADamagedLogIsDataLoss) {
  const TempDir directory;
  const std::string path = directory / "catalog";
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(path));
    for (int i = 0; i < 50; ++i) Put(catalog.get(), absl::StrCat("key", i), std::string(100, 'v'));
  }
  uint64_t largest = 0;
  std::filesystem::path log;
  for (const auto& file : FilesOf(path, ".log")) {
    if (std::filesystem::file_size(file) <= largest) continue;
    largest = std::filesystem::file_size(file);
    log = file;
  }
  ASSERT_GT(largest, 5000u) << "the entries are not in a log";
  FlipByte(log, largest / 2);
  EXPECT_STATUS(OpenRocksCatalog(path), absl::StatusCode::kDataLoss, path);
}

// The write that was under way when the power went was not acknowledged: the catalog opens without it.
TEST(RocksCatalog, ALastRecordThatIsCutShortIsForgotten) {
  const TempDir directory;
  const std::string path = directory / "catalog";
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(path));
    Put(catalog.get(), "first", "1");
    Put(catalog.get(), "last", std::string(1000, 'v'));
  }
  for (const auto& file : FilesOf(path, ".log")) {
    const uint64_t size = std::filesystem::file_size(file);
    if (size > 500) std::filesystem::resize_file(file, size - 500);
  }
  ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(path));
  ASSERT_OK_AND_ASSIGN(const auto first, catalog->Get("first"));
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->value, "1");
  ASSERT_OK_AND_ASSIGN(const auto last, catalog->Get("last"));
  EXPECT_FALSE(last.has_value());
}

TEST(RocksCatalog, AMissingCurrentFileIsDataLossAndNotANewCatalog) {
  const TempDir directory;
  const std::string path = directory / "catalog";
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(path));
    Put(catalog.get(), "key", "value");
  }
  std::filesystem::rename(path + "/CURRENT", directory / "CURRENT");
  EXPECT_STATUS(OpenRocksCatalog(path), absl::StatusCode::kDataLoss, "CURRENT is missing");
  std::filesystem::rename(directory / "CURRENT", path + "/CURRENT");
  ASSERT_OK_AND_ASSIGN(const auto catalog, OpenRocksCatalog(path));
  ASSERT_OK_AND_ASSIGN(const auto entry, catalog->Get("key"));
  EXPECT_TRUE(entry.has_value());
}

TEST(RocksCatalog, ADamagedManifestIsDataLoss) {
  const TempDir directory;
  const std::string path = directory / "catalog";
  { ASSERT_OK(OpenRocksCatalog(path)); }
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().filename().string().starts_with("MANIFEST")) FlipByte(entry.path(), 20);
  }
  EXPECT_STATUS(OpenRocksCatalog(path), absl::StatusCode::kDataLoss, path);
}

// Fails writes and syncs of logs on demand.
class FailingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FailingFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FailingFileSystem"; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok() && name.ends_with(".log")) *file = std::make_unique<LogFile>(this, std::move(*file));
    return status;
  }

  std::atomic<bool> fail_appends = false;
  std::atomic<bool> fail_syncs = false;

 private:
  class LogFile final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    LogFile(FailingFileSystem* owner, std::unique_ptr<rocksdb::FSWritableFile> file)
        : FSWritableFileOwnerWrapper(std::move(file)), owner_(owner) {}
    using FSWritableFileOwnerWrapper::Append;
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
      if (owner_->fail_appends) return rocksdb::IOStatus::NoSpace("No space left on device (injected)");
      return FSWritableFileOwnerWrapper::Append(data, options, context);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
      if (owner_->fail_syncs) return rocksdb::IOStatus::IOError("fsync (injected)");
      return FSWritableFileOwnerWrapper::Sync(options, context);
    }

   private:
    FailingFileSystem* const owner_;
  };
};

struct FailingCatalog {
  FailingCatalog()
      : file_system(std::make_shared<FailingFileSystem>()), env(rocksdb::NewCompositeEnv(file_system)) {
    Open();
  }
  void Open() {
    catalog.reset();
    absl::StatusOr<std::unique_ptr<Catalog>> opened = OpenRocksCatalog(directory / "catalog", env.get());
    ASSERT_OK(opened);
    catalog = std::move(*opened);
  }
  CatalogEntry Entry(const std::string& key) {
    absl::StatusOr<std::optional<CatalogEntry>> entry = catalog->Get(key);
    EXPECT_OK(entry);
    return entry.ok() ? std::move(*entry).value_or(CatalogEntry{}) : CatalogEntry{};
  }
  std::string Value(const std::string& key) { return Entry(key).value; }

  const TempDir directory;
  const std::shared_ptr<FailingFileSystem> file_system;
  const std::unique_ptr<rocksdb::Env> env;
  std::unique_ptr<Catalog> catalog;
};

TEST(RocksCatalog, AFullDiskIsSaidSoAndIsOverWhenThereIsSpaceAgain) {
  FailingCatalog test;
  Put(test.catalog.get(), "before", "1");
  test.file_system->fail_appends = true;
  EXPECT_STATUS(test.catalog->CompareAndSet({}, {{"during", "1"}}), absl::StatusCode::kResourceExhausted,
                "No space left");
  EXPECT_FALSE(test.catalog->CompareAndSet({}, {{"during", "1"}}).ok());
  EXPECT_EQ(test.Value("before"), "1");
  EXPECT_EQ(test.Value("during"), "");
  test.file_system->fail_appends = false;
  // RocksDB looks for space every few seconds.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!test.catalog->CompareAndSet({}, {{"after", "1"}}).ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(test.Value("during"), "");
  test.Open();
  EXPECT_EQ(test.Value("before"), "1");
  EXPECT_EQ(test.Value("during"), "");
  EXPECT_EQ(test.Value("after"), "1");
}

TEST(RocksCatalog, AfterAFailedSyncNothingChangesUntilItIsOpenedAgain) {
  FailingCatalog test;
  Put(test.catalog.get(), "before", "1");
  test.file_system->fail_syncs = true;
  EXPECT_STATUS(test.catalog->CompareAndSet({}, {{"during", "1"}}), absl::StatusCode::kUnavailable,
                "restart the server");
  test.file_system->fail_syncs = false;
  // The failed change may be in the log: if another were acknowledged after it, it could come back out of
  // order.
  EXPECT_STATUS(test.catalog->CompareAndSet({}, {{"after", "1"}}), absl::StatusCode::kUnavailable,
                "restart the server");
  EXPECT_EQ(test.Value("before"), "1");
  EXPECT_EQ(test.Value("during"), "");
  test.Open();
  EXPECT_EQ(test.Value("before"), "1");
  EXPECT_EQ(test.Value("after"), "");
  Put(test.catalog.get(), "after", "1");
  EXPECT_EQ(test.Value("after"), "1");
}

TEST(RocksCatalog, AVersionOfAFailedChangeIsNeverGivenOutAgain) {
  FailingCatalog test;
  Put(test.catalog.get(), "a", "1");
  const uint64_t before = test.Entry("a").version;
  test.file_system->fail_syncs = true;
  EXPECT_FALSE(test.catalog->CompareAndSet({}, {{"a", "2"}}).ok());
  test.file_system->fail_syncs = false;
  test.Open();
  const CatalogEntry between = test.Entry("a");
  EXPECT_EQ(between.version, between.value == "1" ? before : before + 1);
  Put(test.catalog.get(), "a", "3");
  EXPECT_GT(test.Entry("a").version, between.version);
}

}  // namespace
}  // namespace esker::testing
