// A data directory on a file system that is too small: saves that don't fit are refused before they start.
#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

class DiskFull : public ServerTest {
 protected:
  void SetUp() override {
    mount_point_ = dir_ / "small";
    ASSERT_EQ(::mkdir(mount_point_.c_str(), 0755), 0);
    if (::mount("esker-test", mount_point_.c_str(), "tmpfs", 0, "size=192m") != 0) {
      GTEST_SKIP() << "needs root to mount a small file system: " << strerror(errno);
    }
    mounted_ = true;
    ServerProcess::Options options;
    options.data_directory = mount_point_ + "/data";
    options.recycle_mib = 16;
    StartServer(options);
  }
  void TearDown() override {
    server_.reset();
    if (!mounted_) return;
    EXPECT_EQ(::umount2(mount_point_.c_str(), MNT_DETACH), 0) << strerror(errno);
  }

  static std::vector<GlobalTensor> Tensors(uint64_t mib) {
    return {{"weights", ElementType::kF32, {mib, 256 << 10}}};
  }

  std::string mount_point_;
  bool mounted_ = false;
};

TEST_F(DiskFull, ASaveThatDoesNotFitIsRefusedAtItsStartWithTheFigures) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  ASSERT_OK(job->Save(1, MakeJobState(Tensors(60), 2, 1)));
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse before, client_->ServerStatus());

  const JobState too_large = MakeJobState(Tensors(400), 2, 2);
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(2, too_large));
  const absl::Status refused = Job::Wait(handles);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), ::testing::ContainsRegex("[0-9]{3,}"));
  EXPECT_EQ(handles[0].Progress().sent_bytes + handles[1].Progress().sent_bytes, 0u);
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse after, client_->ServerStatus());
  EXPECT_EQ(after.chunks(), before.chunks());
  EXPECT_EQ(after.reserved_bytes(), 0u);

  // Nothing else has stopped: what is there is readable, and what fits is taken.
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 1, Tensors(60), 2, 1), "");
  ASSERT_OK(job->Save(3, MakeJobState(Tensors(20), 2, 3)));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 3, Tensors(20), 2, 3), "");
}

TEST_F(DiskFull, SpaceThatWasCollectedTakesTheNextSave) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  for (uint64_t step = 1; step <= 6; ++step) {
    ASSERT_OK(job->Save(step, MakeJobState(Tensors(100), 2, step)));
    // One rank or both are refused; one that was not is told why the save ended.
    const JobState too_much = MakeJobState(Tensors(100), 2, 100 + step);
    ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(100 + step, too_much));
    for (const SaveHandle& handle : handles) {
      EXPECT_THAT(handle.Wait().code(),
                  AnyOf(absl::StatusCode::kResourceExhausted, absl::StatusCode::kAborted))
          << handle.Wait();
      EXPECT_THAT(std::string(handle.Wait().message()), HasSubstr("bytes"));
    }
    EXPECT_EQ(RestoreDifference(server_->address(), "run", step, Tensors(100), 2, step), "");
    ASSERT_OK(client_->Delete("run", step));
    ASSERT_OK(client_->CollectGarbage());
  }
}

// Two ranks that both fit alone, but not together: one of them is refused, and the other is not left waiting.
TEST_F(DiskFull, TheWholeSaveFailsIfOneRankDoesNotFit) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  const absl::Status refused = job->Save(1, MakeJobState(Tensors(240), 2, 1));
  EXPECT_FALSE(refused.ok());
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 0);
  ASSERT_OK(client_->CollectGarbage());
  ASSERT_OK(job->Save(2, MakeJobState(Tensors(100), 2, 2)));
}

TEST_F(DiskFull, ARestartOfTheServerOnAFullDiskWorks) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  ASSERT_OK(job->Save(1, MakeJobState(Tensors(120), 1, 1)));
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 1, Tensors(120), 1, 1), "");
  const absl::Status refused = job->Save(2, MakeJobState(Tensors(120), 1, 2));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
}

}  // namespace
}  // namespace esker::testing
