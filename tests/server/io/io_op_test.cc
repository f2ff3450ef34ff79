// How an operation goes on after what the kernel answers, which real disks answer rarely.
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "server/io/posix_disk.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

constexpr uint64_t kFileBytes = 16 * kBlockBytes;

class IoOpTest : public ::testing::Test {
 protected:
  IoOpTest() {
    const std::string path = directory_ / "file";
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd);
    EXPECT_EQ(::ftruncate(fd.get(), kFileBytes), 0);
    file_ = std::make_shared<PosixFile>(std::move(fd), "file", path);
  }

  IoOp Make(IoOp::Kind kind, uint64_t offset, uint64_t blocks) {
    return IoOp(file_, kind, offset, MutableBytes(memory_).first(blocks * kBlockBytes),
                [this](absl::Status status) { result_ = std::move(status); });
  }
  absl::Status ResultOf(IoOp* op) {
    op->Finish();
    EXPECT_TRUE(result_.has_value());
    return *std::exchange(result_, std::nullopt);
  }

  testing::TempDir directory_;
  std::shared_ptr<PosixFile> file_;
  alignas(kBlockBytes) std::array<std::byte, kFileBytes> memory_;
  std::optional<absl::Status> result_;
};

TEST_F(IoOpTest, ShortTransfersGoOnWithTheRest) {
  for (const IoOp::Kind kind : {IoOp::Kind::kRead, IoOp::Kind::kWrite}) {
    IoOp op = Make(kind, 2 * kBlockBytes, 8);
    op.Account(3 * kBlockBytes);
    EXPECT_FALSE(op.ended());
    EXPECT_EQ(op.position(), 5 * kBlockBytes);
    EXPECT_EQ(op.rest().data(), memory_.data() + 3 * kBlockBytes);
    EXPECT_EQ(op.rest().size(), 5 * kBlockBytes);
    op.Account(5 * kBlockBytes);
    EXPECT_TRUE(op.ended());
    EXPECT_OK(ResultOf(&op));
  }
}

TEST_F(IoOpTest, TheRestStaysAlignedAfterAPartOfABlock) {
  IoOp op = Make(IoOp::Kind::kWrite, 0, 4);
  op.Account(kBlockBytes + 512);
  EXPECT_EQ(op.position(), kBlockBytes);
  EXPECT_EQ(op.rest().size(), 3 * kBlockBytes);
  op.Account(512);
  EXPECT_EQ(op.position(), kBlockBytes);
  EXPECT_FALSE(op.ended());
}

TEST_F(IoOpTest, PartOfABlockReadInTheMiddleOfTheFileIsTriedAgain) {
  IoOp op = Make(IoOp::Kind::kRead, 0, 2);
  op.Account(512);
  EXPECT_FALSE(op.ended());
  op.Account(2 * kBlockBytes);
  EXPECT_OK(ResultOf(&op));
}

TEST_F(IoOpTest, ReadThatMeetsTheEndIsOutOfRange) {
  IoOp op = Make(IoOp::Kind::kRead, kFileBytes - kBlockBytes, 2);
  op.Account(kBlockBytes);
  EXPECT_FALSE(op.ended());
  op.Account(0);
  ASSERT_TRUE(op.ended());
  EXPECT_STATUS(ResultOf(&op), absl::StatusCode::kOutOfRange, "the file ends at 65536");
}

TEST_F(IoOpTest, InterruptedAndRefusedAttemptsAreRepeated) {
  for (const int error : {EINTR, EAGAIN}) {
    IoOp op = Make(IoOp::Kind::kWrite, 0, 2);
    for (int i = 0; i < 5; ++i) op.Account(-error);
    EXPECT_FALSE(op.ended());
    op.Account(2 * kBlockBytes);
    EXPECT_OK(ResultOf(&op));
  }
}

TEST_F(IoOpTest, NoProgressAtLastFails) {
  IoOp op = Make(IoOp::Kind::kWrite, kBlockBytes, 2);
  op.Account(kBlockBytes);
  int attempts = 0;
  for (; !op.ended() && attempts < 10'000; ++attempts) op.Account(-EAGAIN);
  EXPECT_GE(attempts, 100);
  EXPECT_STATUS(ResultOf(&op), absl::StatusCode::kUnavailable, "no progress after 4096 bytes");
}

TEST_F(IoOpTest, ProgressStartsTheCountOfAttemptsAnew) {
  constexpr int kBlocks = 16;
  IoOp op = Make(IoOp::Kind::kWrite, 0, kBlocks);
  for (int block = 0; block < kBlocks; ++block) {
    for (int i = 0; i < 70; ++i) op.Account(-EAGAIN);
    ASSERT_FALSE(op.ended());
    op.Account(kBlockBytes);
  }
  EXPECT_OK(ResultOf(&op));
}

TEST_F(IoOpTest, ErrorsNameTheRequestAndTheFile) {
  IoOp lost = Make(IoOp::Kind::kRead, kBlockBytes, 2);
  lost.Account(-EIO);
  const absl::Status status = ResultOf(&lost);
  EXPECT_STATUS(status, absl::StatusCode::kDataLoss, "read of 8192 bytes at offset 4096");
  EXPECT_STATUS(status, absl::StatusCode::kDataLoss, directory_ / "file");

  for (const int error : {ENOSPC, EDQUOT}) {
    IoOp full = Make(IoOp::Kind::kWrite, 0, 2);
    full.Account(-error);
    EXPECT_STATUS(ResultOf(&full), absl::StatusCode::kResourceExhausted, "write of 8192 bytes at offset 0");
  }
}

TEST_F(IoOpTest, MoreThanTheKernelMovesAtOnceIsCut) {
  constexpr uint64_t kLarge = uint64_t{5} << 30;
  void* mapped = ::mmap(nullptr, kLarge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  IoOp op(file_, IoOp::Kind::kWrite, 0, MutableBytes(static_cast<std::byte*>(mapped), kLarge),
          [](absl::Status) {});
  uint64_t moved = 0;
  while (!op.ended()) {
    ASSERT_LT(op.rest().size(), uint64_t{1} << 31);
    ASSERT_EQ(op.position(), moved);
    moved += op.rest().size();
    op.Account(static_cast<int64_t>(op.rest().size()));
  }
  EXPECT_EQ(moved, kLarge);
  ::munmap(mapped, kLarge);
}

TEST(ErrnoStatus, MapsWhatCallersTellApart) {
  const std::pair<int, absl::StatusCode> cases[] = {
      {ENOSPC, absl::StatusCode::kResourceExhausted},
      {EDQUOT, absl::StatusCode::kResourceExhausted},
      {EFBIG, absl::StatusCode::kResourceExhausted},
      {EMFILE, absl::StatusCode::kResourceExhausted},
      {EIO, absl::StatusCode::kDataLoss},
      {ENODATA, absl::StatusCode::kDataLoss},
      {EUCLEAN, absl::StatusCode::kDataLoss},
      {ENOENT, absl::StatusCode::kNotFound},
      {EEXIST, absl::StatusCode::kAlreadyExists},
      {EACCES, absl::StatusCode::kPermissionDenied},
      {EPERM, absl::StatusCode::kPermissionDenied},
      {EROFS, absl::StatusCode::kPermissionDenied},
      {ENOSYS, absl::StatusCode::kUnimplemented},
      {EOPNOTSUPP, absl::StatusCode::kUnimplemented},
      {EINVAL, absl::StatusCode::kInvalidArgument},
  };
  for (const auto& [error, code] : cases)
    EXPECT_STATUS(ErrnoStatus(error, "the context"), code, "the context: ");
}

}  // namespace
}  // namespace esker
