#include "server/local/arena.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

constexpr uint64_t kBytes = 64 << 10;

UniqueFd MakeMemory(uint64_t bytes, int seals) {
  UniqueFd memory(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(memory.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(::fcntl(memory.get(), F_ADD_SEALS, seals), 0);
  return memory;
}

TEST(Arena, ShowsWhatTheClientWritesAndOutlivesItsDescriptor) {
  UniqueFd memory = MakeMemory(kBytes, F_SEAL_SHRINK);
  ASSERT_OK_AND_ASSIGN(const auto arena, Arena::Map(memory, kBytes));
  ASSERT_EQ(::pwrite(memory.get(), "x", 1, 4096), 1);
  memory.Reset();
  EXPECT_EQ(arena->memory().size(), kBytes);
  EXPECT_EQ(arena->memory()[4096], std::byte{'x'});
}

TEST(Arena, ThatCouldShrinkUnderTheServerIsRefused) {
  EXPECT_STATUS(Arena::Map(MakeMemory(kBytes, F_SEAL_GROW), kBytes), absl::StatusCode::kInvalidArgument,
                "sealed");
  const UniqueFd sealed = MakeMemory(kBytes, F_SEAL_SHRINK);
  ASSERT_OK(Arena::Map(sealed, kBytes));
  EXPECT_NE(::ftruncate(sealed.get(), 0), 0);
}

TEST(Arena, OfALyingLengthIsRefused) {
  const UniqueFd memory = MakeMemory(kBytes, F_SEAL_SHRINK);
  EXPECT_STATUS(Arena::Map(memory, kBytes + 1), absl::StatusCode::kInvalidArgument, "65536 bytes");
  EXPECT_STATUS(Arena::Map(memory, uint64_t{1} << 63), absl::StatusCode::kInvalidArgument, "65536 bytes");
  EXPECT_STATUS(Arena::Map(memory, 0), absl::StatusCode::kInvalidArgument, "of which 0");
}

TEST(Arena, MustBeMemory) {
  EXPECT_STATUS(Arena::Map(UniqueFd(), kBytes), absl::StatusCode::kInvalidArgument, "there is none");
  const TempDir directory;
  const UniqueFd file(::open((directory / "file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(file.get(), kBytes), 0);
  EXPECT_FALSE(Arena::Map(file, kBytes).ok());
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  EXPECT_STATUS(Arena::Map(reader, kBytes), absl::StatusCode::kInvalidArgument, "memfd_create");
}

}  // namespace
}  // namespace esker::testing
