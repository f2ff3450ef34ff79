#include "tools/files.h"

#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/tools/cli_harness.h"
#include "tools/interrupt.h"

namespace esker {
namespace {

using testing::ListDirectory;
using testing::ReadFile;
using testing::TempDir;
using testing::WriteFile;
using Kind = OutputTarget::Kind;

using Names = std::vector<std::string>;

// Writes `text` as the file `name` of the target.
void Put(OutputTarget* target, const std::string& name, const std::string& text) {
  ASSERT_OK(WriteFileDurably(target->StagingPath(name), text));
}

TEST(OutputTarget, AFileAppearsAtCommitOnly) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "f", Kind::kFile, false));
  Put(target.get(), "ignored", "text");
  EXPECT_FALSE(std::filesystem::exists(directory / "f"));
  ASSERT_OK(target->Commit());
  EXPECT_EQ(ListDirectory(directory.path()), Names{"f"});
  EXPECT_EQ(ReadFile(directory / "f"), "text");
}

TEST(OutputTarget, WhatIsNotCommittedLeavesNothing) {
  const TempDir directory;
  for (const Kind kind : {Kind::kFile, Kind::kDirectory}) {
    {
      ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "x", kind, false));
      Put(target.get(), "f", "text");
      EXPECT_EQ(ListDirectory(directory.path()).size(), 1u);
    }
    EXPECT_EQ(ListDirectory(directory.path()), Names{});
  }
}

TEST(OutputTarget, RefusesAnExistingFileUnlessForced) {
  const TempDir directory;
  WriteFile(directory / "f", "old");
  EXPECT_STATUS(OutputTarget::Create(directory / "f", Kind::kFile, false), absl::StatusCode::kAlreadyExists,
                "--force");
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "f", Kind::kFile, true));
  Put(target.get(), "f", "new");
  EXPECT_EQ(ReadFile(directory / "f"), "old");
  ASSERT_OK(target->Commit());
  EXPECT_EQ(ReadFile(directory / "f"), "new");
}

TEST(OutputTarget, AFileThatAppearsMeanwhileIsNotReplaced) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "f", Kind::kFile, false));
  Put(target.get(), "f", "ours");
  WriteFile(directory / "f", "theirs");
  EXPECT_STATUS(target->Commit(), absl::StatusCode::kAlreadyExists, "f");
  EXPECT_EQ(ReadFile(directory / "f"), "theirs");
  EXPECT_EQ(ListDirectory(directory.path()), Names{"f"});
}

TEST(OutputTarget, ADirectoryMayBeNewOrEmpty) {
  const TempDir directory;
  std::filesystem::create_directory(directory / "empty");
  for (const std::string name : {"new", "empty", "slash/"}) {
    ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / name, Kind::kDirectory, false));
    Put(target.get(), "a", "1");
    Put(target.get(), "b", "2");
    ASSERT_OK(target->Commit());
    EXPECT_EQ(ListDirectory(directory / name), (Names{"a", "b"}));
  }
  EXPECT_EQ(ListDirectory(directory.path()), (Names{"empty", "new", "slash"}));
}

TEST(OutputTarget, ADirectoryThatFillsMeanwhileIsLeftAlone) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "d", Kind::kDirectory, false));
  Put(target.get(), "a", "ours");
  std::filesystem::create_directory(directory / "d");
  WriteFile(directory / "d/x", "theirs");
  EXPECT_STATUS(target->Commit(), absl::StatusCode::kAlreadyExists, "d");
  EXPECT_EQ(ListDirectory(directory / "d"), Names{"x"});
}

TEST(OutputTarget, ForceReplacesSameNamesAndKeepsOthers) {
  const TempDir directory;
  std::filesystem::create_directory(directory / "d");
  WriteFile(directory / "d/a", "old");
  WriteFile(directory / "d/other", "theirs");
  EXPECT_STATUS(OutputTarget::Create(directory / "d", Kind::kDirectory, false),
                absl::StatusCode::kAlreadyExists, "is not empty");
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "d", Kind::kDirectory, true));
  Put(target.get(), "a", "new");
  ASSERT_OK(target->Commit());
  EXPECT_EQ(ListDirectory(directory / "d"), (Names{"a", "other"}));
  EXPECT_EQ(ReadFile(directory / "d/a"), "new");
  EXPECT_EQ(ReadFile(directory / "d/other"), "theirs");
}

TEST(OutputTarget, RefusesWhatCanNotBe) {
  const TempDir directory;
  WriteFile(directory / "f", "");
  std::filesystem::create_directory(directory / "d");
  EXPECT_STATUS(OutputTarget::Create("", Kind::kFile, false), absl::StatusCode::kInvalidArgument, "empty");
  EXPECT_STATUS(OutputTarget::Create(directory / "none/f", Kind::kFile, false), absl::StatusCode::kNotFound,
                "none");
  EXPECT_STATUS(OutputTarget::Create(directory / "d", Kind::kFile, true), absl::StatusCode::kAlreadyExists,
                "is a directory");
  EXPECT_STATUS(OutputTarget::Create(directory / "f", Kind::kDirectory, true),
                absl::StatusCode::kAlreadyExists, "is no directory");
}

TEST(OutputTarget, ALinkIsFollowed) {
  const TempDir directory;
  std::filesystem::create_directory(directory / "real");
  std::filesystem::create_symlink(directory / "real", directory / "link");
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "link", Kind::kDirectory, false));
  Put(target.get(), "a", "1");
  ASSERT_OK(target->Commit());
  EXPECT_TRUE(std::filesystem::is_symlink(directory / "link"));
  EXPECT_EQ(ListDirectory(directory / "real"), Names{"a"});
}

TEST(OutputTarget, ModesFollowTheUmask) {
  const TempDir directory;
  const mode_t before = ::umask(027);
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "d", Kind::kDirectory, false));
  Put(target.get(), "a", "1");
  ASSERT_OK(target->Commit());
  ::umask(before);
  struct stat info {};
  ASSERT_EQ(::stat((directory / "d").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0750u);
  ASSERT_EQ(::stat((directory / "d/a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST(OutputTarget, AfterAnInterruptNothingCanBeCommitted) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto target, OutputTarget::Create(directory / "f", Kind::kFile, false));
  Put(target.get(), "f", "text");
  target->RemoveStaging();
  EXPECT_STATUS(target->Commit(), absl::StatusCode::kCancelled, "interrupted");
  EXPECT_STATUS(WriteFileDurably(target->StagingPath("f"), "x"), absl::StatusCode::kNotFound, "f");
  EXPECT_EQ(ListDirectory(directory.path()), Names{});
}

TEST(MappedFile, WhatIsWrittenThroughMemoryIsInTheFile) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Create(directory / "f", 10'000));
  ASSERT_EQ(file->bytes().size(), 10'000u);
  std::fill(file->bytes().begin(), file->bytes().end(), std::byte{'x'});
  ASSERT_OK(file->Sync());
  EXPECT_EQ(ReadFile(directory / "f"), std::string(10'000, 'x'));
  EXPECT_STATUS(MappedFile::Create(directory / "f", 1), absl::StatusCode::kAlreadyExists, "f");
}

TEST(MappedFile, MayBeEmpty) {
  const TempDir directory;
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Create(directory / "f", 0));
  EXPECT_TRUE(file->bytes().empty());
  EXPECT_OK(file->Sync());
}

TEST(MappedFile, MoreThanTheDiskHoldsIsRefusedAtOnce) {
  const TempDir directory;
  EXPECT_STATUS(MappedFile::Create(directory / "f", uint64_t{1} << 50), absl::StatusCode::kResourceExhausted,
                "f");
}

TEST(MapForReading, TellsWhatIsThere) {
  const TempDir directory;
  WriteFile(directory / "f", "text");
  ASSERT_OK_AND_ASSIGN(const ByteView bytes, MapForReading(directory / "f"));
  EXPECT_EQ(AsText(bytes), "text");
  Unmap(bytes);
  EXPECT_STATUS(MapForReading(directory / "none"), absl::StatusCode::kNotFound, "none");
}

// The guard ends the process, so it is tried in one of its own.
TEST(InterruptGuardDeathTest, CleansUpAndExitsAsAShellWouldSay) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto interrupted = [] {
    const InterruptGuard guard([] { std::fprintf(stderr, "cleaned up\n"); });
    ::kill(::getpid(), SIGTERM);
    while (true) ::pause();
  };
  EXPECT_EXIT(interrupted(), ::testing::ExitedWithCode(128 + SIGTERM), "cleaned up");
}

TEST(InterruptGuard, WithoutASignalNothingIsCleanedUp) {
  std::atomic<int> cleaned = 0;
  {
    const InterruptGuard guard([&] { ++cleaned; });
  }
  EXPECT_EQ(cleaned, 0);
  sigset_t mask;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(::sigismember(&mask, SIGINT), 0);
}

}  // namespace
}  // namespace esker
