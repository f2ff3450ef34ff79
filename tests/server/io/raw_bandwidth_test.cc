#include "server/io/raw_bandwidth.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <thread>

#include "format/base/unique_fd.h"
#include "server/io/disk.h"
#include "tests/server/io/child_process.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Sends `bytes` at most, less if the other end closes.
void SendTo(uint16_t port, uint64_t bytes) {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string block(kMiB, 'x');
  while (bytes > 0) {
    const ssize_t sent = ::send(socket.get(), block.data(), std::min(bytes, kMiB), MSG_NOSIGNAL);
    if (sent < 0) return;
    bytes -= static_cast<uint64_t>(sent);
  }
}

absl::StatusOr<double> ReceiveFrom(const std::string& directory, uint64_t bytes, uint64_t sent_bytes) {
  absl::StatusOr<std::unique_ptr<TcpToDisk>> receiver = TcpToDisk::Open(directory, bytes, kMiB, 4);
  if (!receiver.ok()) return receiver.status();
  std::thread sender([&] { SendTo((*receiver)->port(), sent_bytes); });
  absl::StatusOr<double> measured = (*receiver)->Receive();
  sender.join();
  return measured;
}

void ExpectReceives(const std::string& directory, uint64_t bytes) {
  const absl::StatusOr<double> measured = ReceiveFrom(directory, bytes, bytes);
  ASSERT_OK(measured);
  EXPECT_GT(*measured, 0);
}

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
  ExpectReceives(directory.path(), kBytes);
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

TEST(RawBandwidth, ASenderThatEndsTooEarlyIsAnError) {
  testing::TempDir directory;
  EXPECT_STATUS(ReceiveFrom(directory.path(), 8 * kMiB, 8 * kMiB - 1), absl::StatusCode::kUnavailable,
                "too early");
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
