#include "server/io/raw_bandwidth.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "server/io/disk.h"
#include "tests/server/io/child_process.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

void ExpectMeasures() {
  testing::TempDir directory;
  // The last block is a short one.
  constexpr uint64_t kBytes = 5 * kMiB + 3 * kBlockBytes;
  for (const absl::StatusOr<double>& measured :
       {MeasureWriteBandwidth(directory.path(), kBytes, kMiB, 4),
        MeasureWriteBandwidth(directory.path(), kBytes, kMiB, 4, /*into_written_file=*/false),
        MeasureReadBandwidth(directory.path(), kBytes, kMiB, 4),
        MeasureReadBandwidth(directory.path(), kBlockBytes, kMiB, 16)}) {
    ASSERT_OK(measured);
    EXPECT_TRUE(std::isfinite(*measured));
    EXPECT_GT(*measured, 0);
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(RawBandwidth, MeasuresAndLeavesNothingBehind) { ExpectMeasures(); }

TEST(RawBandwidth, MeasuresWithThreadsWhereIoUringIsForbidden) {
  for (const unsigned system_call : {__NR_io_uring_setup, __NR_io_uring_enter}) {
    EXPECT_CHILD_PASSES([&] {
      testing::DenySystemCall(system_call, EPERM);
      ExpectMeasures();
    });
  }
}

TEST(RawBandwidth, MeasuresWhereDirectIoIsRefused) {
  EXPECT_CHILD_PASSES([] {
    testing::DenyDirectIo();
    ExpectMeasures();
  });
}

TEST(RawBandwidth, RefusesWhatItCantMeasure) {
  testing::TempDir directory;
  EXPECT_STATUS(MeasureWriteBandwidth(directory.path(), 0), absl::StatusCode::kInvalidArgument,
                "multiples of");
  EXPECT_STATUS(MeasureWriteBandwidth(directory.path(), 1000), absl::StatusCode::kInvalidArgument,
                "1000 bytes");
  EXPECT_STATUS(MeasureReadBandwidth(directory.path(), kMiB, kMiB, 0), absl::StatusCode::kInvalidArgument,
                "depth 0");
  EXPECT_STATUS(MeasureReadBandwidth(directory / "missing", kMiB), absl::StatusCode::kNotFound, "missing");
}

TEST(RawBandwidth, FullDiskIsAnError) {
  testing::TempDir directory;
  EXPECT_CHILD_PASSES([&] {
    const std::string refused = testing::MountPrivately("tmpfs", directory.path(), "size=1m");
    if (!refused.empty()) GTEST_SKIP() << refused;
    EXPECT_STATUS(MeasureWriteBandwidth(directory.path(), 4 * kMiB, 256 * 1024, 4),
                  absl::StatusCode::kResourceExhausted, "bandwidth test's file");
  });
}

}  // namespace
}  // namespace esker
