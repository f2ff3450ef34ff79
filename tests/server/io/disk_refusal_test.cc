// What a Disk does where the kernel, the container or the file system refuses something: each refusal is a
// real one, in a child process with a seccomp filter, a mount or a limit of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <fstream>
#include <random>
#include <sstream>

#include "server/io/buffer_pool.h"
#include "server/io/disk.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/server/io/child_process.h"
#include "tests/server/io/completions.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using testing::DenySystemCall;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uid_t kNobody = 65534;
constexpr uint64_t kLockableBytes = uint64_t{1} << 20;

// The log of this process from now on.
class CapturedLog {
 public:
  CapturedLog() {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
  }
  ~CapturedLog() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("none")); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

void ExpectWritesAndReads(Disk* disk) {
  BufferPool pool(uint64_t{8} << 20, uint64_t{4} << 20);
  ASSERT_OK_AND_ASSIGN(const auto file, disk->Open("data", Disk::OpenMode::kCreateNew));
  const Buffer content = pool.Acquire(uint64_t{4} << 20);
  std::mt19937_64 random(1);
  testing::FillRandom(content.bytes(), &random);
  constexpr uint64_t kBytes = 16 * kBlockBytes;
  testing::Completions writes;
  for (uint64_t offset = 0; offset < content.size(); offset += kBytes) {
    file->WriteAsync(offset, content.bytes().subspan(offset, kBytes), writes.Expect());
  }
  ASSERT_OK(writes.Wait());
  ASSERT_OK(file->Sync());
  const Buffer found = pool.Acquire(content.size());
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(testing::Equal(found.bytes(), content.bytes()));
  EXPECT_STATUS(file->Read(1, found.bytes()), absl::StatusCode::kInvalidArgument, "multiples of 4096");
  EXPECT_STATUS(file->Read(content.size(), found.bytes()), absl::StatusCode::kOutOfRange, "the file ends at");
}

// Takes the rights of root away for what follows in this child, if it has them.
void BecomeNobody(const std::string& directory, mode_t mode) {
  if (::geteuid() != 0) return;
  ESKER_CHECK(::chmod(directory.c_str(), mode) == 0);
  ESKER_CHECK(::seteuid(kNobody) == 0);
}

struct Refusal {
  const char* name;
  unsigned system_call;
  unsigned error;
  absl::StatusCode code;
};

class UringRefusal : public ::testing::TestWithParam<Refusal> {};

INSTANTIATE_TEST_SUITE_P(
    Kinds, UringRefusal,
    ::testing::Values(
        Refusal{"SetupForbidden", __NR_io_uring_setup, EPERM, absl::StatusCode::kPermissionDenied},
        Refusal{"SetupUnknown", __NR_io_uring_setup, ENOSYS, absl::StatusCode::kUnimplemented},
        Refusal{"EnterForbidden", __NR_io_uring_enter, EPERM, absl::StatusCode::kPermissionDenied},
        Refusal{"RegisterUnknown", __NR_io_uring_register, ENOSYS, absl::StatusCode::kUnimplemented}),
    [](const auto& refusal) { return refusal.param.name; });

TEST_P(UringRefusal, IsAnErrorOfTheEngineAndAutoFallsBackToThreads) {
  const testing::TempDir directory;
  EXPECT_CHILD_PASSES([&] {
    DenySystemCall(GetParam().system_call, GetParam().error);
    EXPECT_STATUS(OpenDisk(directory.path(), DiskEngine::kUring), GetParam().code,
                  "io_uring can't be used here");
    const CapturedLog log;
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory.path(), DiskEngine::kAuto));
    EXPECT_THAT(disk->Describe(), StartsWith("thread pool ("));
    EXPECT_THAT(log.text(), HasSubstr("thread-pool engine"));
    EXPECT_THAT(log.text(), HasSubstr(directory.path()));
    EXPECT_THAT(log.text(), HasSubstr(::strerror(static_cast<int>(GetParam().error))));
    ExpectWritesAndReads(disk.get());
  });
}

class DiskRefusal : public ::testing::TestWithParam<DiskEngine> {
 protected:
  // Why this engine can't be tried here, or nothing.
  std::string Unusable() const {
    if (GetParam() != DiskEngine::kUring) return "";
    return std::string(OpenDisk(directory_.path(), GetParam()).status().message());
  }

  void ExpectBufferedFallback() const {
    const CapturedLog log;
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory_.path(), GetParam()));
    EXPECT_THAT(disk->Describe(), HasSubstr("the file system refuses O_DIRECT"));
    EXPECT_THAT(log.text(), HasSubstr("refuses O_DIRECT"));
    EXPECT_THAT(log.text(), HasSubstr(directory_.path()));
    ExpectWritesAndReads(disk.get());
  }

  const testing::TempDir directory_;
};

INSTANTIATE_TEST_SUITE_P(Engines, DiskRefusal, ::testing::Values(DiskEngine::kUring, DiskEngine::kThreadPool),
                         [](const auto& engine) {
                           return engine.param == DiskEngine::kUring ? "Uring" : "ThreadPool";
                         });

TEST_P(DiskRefusal, WithoutDirectIoItUsesThePageCacheAndSaysSo) {
  EXPECT_CHILD_PASSES([&] {
    if (const std::string why = Unusable(); !why.empty()) GTEST_SKIP() << why;
    testing::DenyDirectIo();
    ExpectBufferedFallback();
  });
}

TEST(UringDisk, DirectIoThatIsRefusedOnlyAtTheFirstWriteIsNoticedToo) {
  const testing::TempDir directory;
  EXPECT_CHILD_PASSES([&] {
    if (const auto disk = OpenDisk(directory.path(), DiskEngine::kUring); !disk.ok()) {
      GTEST_SKIP() << disk.status().ToString();
    }
    DenySystemCall(__NR_pwrite64, EINVAL);  // not used by the ring
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory.path(), DiskEngine::kUring));
    EXPECT_THAT(disk->Describe(), HasSubstr("the file system refuses O_DIRECT"));
    ExpectWritesAndReads(disk.get());
  });
}

TEST_P(DiskRefusal, OnAFileSystemWithoutDirectIoItUsesThePageCacheAndSaysSo) {
  EXPECT_CHILD_PASSES([&] {
    if (const std::string why = Unusable(); !why.empty()) GTEST_SKIP() << why;
    // Not tmpfs: that takes O_DIRECT since Linux 6.6.
    const std::string refused = testing::MountPrivately("ramfs", directory_.path(), "");
    if (!refused.empty()) GTEST_SKIP() << refused;
    ExpectBufferedFallback();
  });
}

TEST_P(DiskRefusal, WorksOnTmpfsWhetherOrNotItTakesDirectIo) {
  EXPECT_CHILD_PASSES([&] {
    if (const std::string why = Unusable(); !why.empty()) GTEST_SKIP() << why;
    const std::string refused = testing::MountPrivately("tmpfs", directory_.path(), "size=16m");
    if (!refused.empty()) GTEST_SKIP() << refused;
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory_.path(), GetParam()));
    ExpectWritesAndReads(disk.get());
  });
}

TEST_P(DiskRefusal, WithoutLockedMemoryItGoesOnWithPlainBuffers) {
  EXPECT_CHILD_PASSES([&] {
    if (const std::string why = Unusable(); !why.empty()) GTEST_SKIP() << why;
    BecomeNobody(directory_.path(), 0777);
    // Enough for the ring itself, which newer kernels count too, and not for the pool.
    const rlimit little{.rlim_cur = kLockableBytes, .rlim_max = kLockableBytes};
    ESKER_CHECK(::setrlimit(RLIMIT_MEMLOCK, &little) == 0);
    const CapturedLog log;
    BufferPool pool(uint64_t{4} << 20, kBlockBytes);
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory_.path(), GetParam()));
    disk->RegisterMemory(pool.memory());
    EXPECT_THAT(disk->Describe(), Not(HasSubstr("registered")));
    if (GetParam() == DiskEngine::kUring) {
      EXPECT_THAT(log.text(), HasSubstr("RLIMIT_MEMLOCK"));
    }
    ExpectWritesAndReads(disk.get());
  });
}

TEST_P(DiskRefusal, FailedSyncIsNeverFollowedByAGoodOne) {
  EXPECT_CHILD_PASSES([&] {
    if (const std::string why = Unusable(); !why.empty()) GTEST_SKIP() << why;
    DenySystemCall(__NR_fdatasync, EIO);
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory_.path(), GetParam()));
    ASSERT_OK_AND_ASSIGN(const auto file, disk->Open("data", Disk::OpenMode::kCreateNew));
    EXPECT_STATUS(file->Sync(), absl::StatusCode::kDataLoss, "Input/output error");
    EXPECT_STATUS(file->Sync(), absl::StatusCode::kDataLoss, "an earlier one failed");
  });
}

TEST_P(DiskRefusal, DirectoryWithoutPermissionIsPermissionDenied) {
  if (::geteuid() != 0) {
    ASSERT_EQ(::chmod(directory_.path().c_str(), 0500), 0);
  }
  EXPECT_CHILD_PASSES([&] {
    BecomeNobody(directory_.path(), 0755);
    EXPECT_STATUS(OpenDisk(directory_.path(), GetParam()), absl::StatusCode::kPermissionDenied,
                  directory_.path());
  });
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0700), 0);
}

TEST_P(DiskRefusal, DirectoryThatIsMissingOrNoDirectoryIsRefused) {
  EXPECT_STATUS(OpenDisk(directory_ / "missing", GetParam()), absl::StatusCode::kNotFound,
                directory_ / "missing");
  std::ofstream(directory_ / "file") << "content";
  EXPECT_STATUS(OpenDisk(directory_ / "file", GetParam()), absl::StatusCode::kFailedPrecondition,
                directory_ / "file");
}

TEST(ThreadPoolDisk, ErrorsOfTheDeviceAreDataLoss) {
  const testing::TempDir directory;
  EXPECT_CHILD_PASSES([&] {
    DenySystemCall(__NR_pread64, EIO);
    ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory.path(), DiskEngine::kThreadPool));
    ASSERT_OK_AND_ASSIGN(const auto file, disk->Open("data", Disk::OpenMode::kCreateNew));
    BufferPool pool(kBlockBytes, kBlockBytes);
    const Buffer buffer = pool.Acquire(kBlockBytes);
    EXPECT_OK(file->Write(0, buffer.bytes()));
    EXPECT_STATUS(file->Read(0, buffer.bytes()), absl::StatusCode::kDataLoss,
                  "read of 4096 bytes at offset 0");
  });
}

TEST(AutoDisk, TakesIoUringWhereItIsAllowed) {
  const testing::TempDir directory;
  const absl::StatusOr<std::unique_ptr<Disk>> uring = OpenDisk(directory.path(), DiskEngine::kUring);
  ASSERT_OK_AND_ASSIGN(const auto disk, OpenDisk(directory.path(), DiskEngine::kAuto));
  EXPECT_THAT(disk->Describe(), StartsWith(uring.ok() ? "io_uring (" : "thread pool ("));
}

}  // namespace
}  // namespace esker
