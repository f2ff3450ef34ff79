// What every Disk does, run on each engine. What a Disk does where the system refuses something is in
// disk_refusal_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include "server/io/buffer_pool.h"
#include "server/io/disk.h"
#include "server/io/posix_disk.h"
#include "tests/server/io/child_process.h"
#include "tests/server/io/completions.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using testing::Completions;
using ::testing::ElementsAre;
using testing::Equal;
using testing::FillRandom;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;
// More than any engine queues and has in the kernel, so that submitters must wait.
constexpr int kMoreThanQueued = 1000;

class DiskConformance : public ::testing::TestWithParam<DiskEngine> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Disk>> disk = OpenDisk(directory_.path(), GetParam());
    if (GetParam() == DiskEngine::kUring &&
        (absl::IsPermissionDenied(disk.status()) || absl::IsUnimplemented(disk.status()))) {
      GTEST_SKIP() << disk.status().ToString();
    }
    ASSERT_OK(disk);
    disk_ = std::move(*disk);
  }

  std::unique_ptr<DiskFile> Create(const std::string& name) {
    absl::StatusOr<std::unique_ptr<DiskFile>> file = disk_->Open(name, Disk::OpenMode::kCreateNew);
    EXPECT_OK(file);
    return file.ok() ? std::move(*file) : nullptr;
  }
  std::unique_ptr<DiskFile> CreateFilled(const std::string& name, ByteView content) {
    std::unique_ptr<DiskFile> file = Create(name);
    EXPECT_OK(file->Write(0, content));
    return file;
  }
  // Opens the disk again, as a restarted server does.
  void Reopen() {
    disk_.reset();
    SetUp();
  }
  Buffer RandomBytes(uint64_t bytes) {
    Buffer buffer = pool_.Acquire(bytes);
    FillRandom(buffer.bytes(), &random_);
    return buffer;
  }

  testing::TempDir directory_;
  std::mt19937_64 random_{testing::TestSeed()};
  BufferPool pool_{32 * kMiB, 16 * kMiB};
  std::unique_ptr<Disk> disk_;
};

INSTANTIATE_TEST_SUITE_P(Engines, DiskConformance,
                         ::testing::Values(DiskEngine::kUring, DiskEngine::kThreadPool),
                         [](const auto& engine) {
                           return engine.param == DiskEngine::kUring ? "Uring" : "ThreadPool";
                         });

// [0, blocks) cut at random places, in random order.
template <typename Random>
std::vector<std::pair<uint64_t, uint64_t>> RandomPieces(uint64_t blocks, uint64_t max_blocks,
                                                        Random* random) {
  std::vector<std::pair<uint64_t, uint64_t>> pieces;
  for (uint64_t at = 0; at < blocks;) {
    const uint64_t length = std::min(1 + (*random)() % max_blocks, blocks - at);
    pieces.emplace_back(at * kBlockBytes, length * kBlockBytes);
    at += length;
  }
  std::shuffle(pieces.begin(), pieces.end(), *random);
  return pieces;
}

TEST_P(DiskConformance, ReadsBackWhatWasWrittenWithManyOperationsInFlight) {
  constexpr uint64_t kBlocks = 2048;
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer model = RandomBytes(kBlocks * kBlockBytes);
  const Buffer found = pool_.Acquire(kBlocks * kBlockBytes);
  for (int round = 0; round < 3; ++round) {
    FillRandom(model.bytes(), &random_);
    Completions writes;
    for (const auto& [offset, bytes] : RandomPieces(kBlocks, 9, &random_)) {
      file->WriteAsync(offset, model.bytes().subspan(offset, bytes), writes.Expect());
    }
    ASSERT_OK(writes.Wait());
    ASSERT_OK(file->Sync());
    std::fill(found.bytes().begin(), found.bytes().end(), std::byte{0});
    Completions reads;
    for (const auto& [offset, bytes] : RandomPieces(kBlocks, 33, &random_)) {
      file->ReadAsync(offset, found.bytes().subspan(offset, bytes), reads.Expect());
    }
    ASSERT_OK(reads.Wait());
    ASSERT_TRUE(Equal(found.bytes(), model.bytes()));
  }
}

TEST_P(DiskConformance, WhatWasSyncedIsThereAfterReopening) {
  const Buffer content = RandomBytes(4 * kMiB);
  {
    const std::unique_ptr<DiskFile> file = CreateFilled("data", content.bytes());
    ASSERT_OK(file->Sync());
    ASSERT_OK(disk_->SyncDirectory());
  }
  Reopen();
  ASSERT_OK_AND_ASSIGN(const auto file, disk_->Open("data", Disk::OpenMode::kExisting));
  EXPECT_EQ(file->name(), "data");
  ASSERT_OK_AND_ASSIGN(const uint64_t size, file->Size());
  EXPECT_EQ(size, content.size());
  const Buffer found = pool_.Acquire(content.size());
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes(), content.bytes()));
}

TEST_P(DiskConformance, UnalignedRequestsAreRefusedAndDoNothing) {
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer buffer = RandomBytes(4 * kBlockBytes);
  const MutableBytes bytes = buffer.bytes();
  const struct {
    uint64_t offset;
    MutableBytes memory;
  } requests[] = {
      {1, bytes.first(kBlockBytes)},
      {512, bytes.first(kBlockBytes)},
      {0, bytes.first(100)},
      {0, bytes.first(kBlockBytes + 512)},
      {0, bytes.subspan(8, kBlockBytes)},
      {kBlockBytes - 1, bytes.subspan(3, 77)},
  };
  for (const auto& [offset, memory] : requests) {
    for (const absl::Status& status : {file->Write(offset, memory), file->Read(offset, memory)}) {
      EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, "multiples of 4096");
      EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, directory_ / "data");
      EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, absl::StrCat("offset ", offset, " of"));
      EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, absl::StrCat(memory.size(), " bytes"));
    }
  }
  const uint64_t last_block = (uint64_t{1} << 63) - kBlockBytes;
  EXPECT_STATUS(file->Write(last_block, bytes), absl::StatusCode::kInvalidArgument, "2^63");
  EXPECT_STATUS(file->Read(-kBlockBytes, bytes), absl::StatusCode::kInvalidArgument, "2^63");
  ASSERT_OK_AND_ASSIGN(const uint64_t size, file->Size());
  EXPECT_EQ(size, 0u);
}

TEST_P(DiskConformance, NothingIsReadAndWrittenWithSuccess) {
  const std::unique_ptr<DiskFile> file = Create("data");
  EXPECT_OK(file->Write(0, {}));
  EXPECT_OK(file->Read(kBlockBytes, {}));
}

TEST_P(DiskConformance, ReadPastTheEndIsOutOfRange) {
  const std::unique_ptr<DiskFile> file = CreateFilled("data", RandomBytes(2 * kBlockBytes).bytes());
  const Buffer buffer = pool_.Acquire(4 * kBlockBytes);
  EXPECT_STATUS(file->Read(0, buffer.bytes()), absl::StatusCode::kOutOfRange, "the file ends at 8192");
  EXPECT_STATUS(file->Read(kBlockBytes, buffer.bytes()), absl::StatusCode::kOutOfRange, "offset 4096 of");
  EXPECT_STATUS(file->Read(2 * kBlockBytes, buffer.bytes()), absl::StatusCode::kOutOfRange,
                directory_ / "data");
  EXPECT_STATUS(file->Read(uint64_t{1} << 40, buffer.bytes()), absl::StatusCode::kOutOfRange, "ends at 8192");
  EXPECT_OK(file->Read(0, buffer.bytes().first(2 * kBlockBytes)));
}

TEST_P(DiskConformance, ReadOfAFileCutOffWithinABlockIsOutOfRange) {
  const Buffer content = RandomBytes(4 * kBlockBytes);
  const std::unique_ptr<DiskFile> file = CreateFilled("data", content.bytes());
  std::filesystem::resize_file(directory_ / "data", 2 * kBlockBytes + 700);
  const Buffer found = pool_.Acquire(4 * kBlockBytes);
  EXPECT_STATUS(file->Read(0, found.bytes()), absl::StatusCode::kOutOfRange, "the file ends at 8892");
  EXPECT_STATUS(file->Read(2 * kBlockBytes, found.bytes().first(kBlockBytes)), absl::StatusCode::kOutOfRange,
                "ends at 8892");
  ASSERT_OK(file->Read(0, found.bytes().first(2 * kBlockBytes)));
  EXPECT_TRUE(Equal(found.bytes().first(2 * kBlockBytes), content.bytes().first(2 * kBlockBytes)));
}

TEST_P(DiskConformance, OpenTellsMissingFromExisting) {
  EXPECT_STATUS(disk_->Open("none", Disk::OpenMode::kExisting), absl::StatusCode::kNotFound,
                directory_ / "none");
  const Buffer content = RandomBytes(kBlockBytes);
  (void)CreateFilled("data", content.bytes());
  EXPECT_STATUS(disk_->Open("data", Disk::OpenMode::kCreateNew), absl::StatusCode::kAlreadyExists,
                directory_ / "data");
  ASSERT_OK_AND_ASSIGN(const auto file, disk_->Open("data", Disk::OpenMode::kExisting));
  const Buffer found = pool_.Acquire(kBlockBytes);
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes(), content.bytes())) << "the refused creation changed the file";
}

TEST_P(DiskConformance, NamesThatLeaveTheDirectoryAreRefused) {
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("../x"),
                                  std::string("a/b"), std::string("/etc/passwd"), std::string("a\0b", 3)}) {
    EXPECT_STATUS(disk_->Open(name, Disk::OpenMode::kCreateNew), absl::StatusCode::kInvalidArgument, "plain");
    EXPECT_STATUS(disk_->Open(name, Disk::OpenMode::kExisting), absl::StatusCode::kInvalidArgument, "plain");
    EXPECT_STATUS(disk_->Remove(name), absl::StatusCode::kInvalidArgument, "plain file name");
  }
}

TEST_P(DiskConformance, ListIsSortedAndNamesFilesOnly) {
  ASSERT_OK_AND_ASSIGN(const auto none, disk_->List());
  EXPECT_THAT(none, IsEmpty());
  std::vector<std::string> names;
  for (int i = 0; i < 100; ++i) names.push_back(absl::StrCat("segment-", i));
  std::shuffle(names.begin(), names.end(), random_);
  for (const std::string& name : names) (void)Create(name);
  std::filesystem::create_directory(directory_ / "folder");
  std::sort(names.begin(), names.end());
  ASSERT_OK_AND_ASSIGN(const auto found, disk_->List());
  EXPECT_EQ(found, names);
}

TEST_P(DiskConformance, RemovedFilesAreGone) {
  (void)Create("a");
  (void)Create("b");
  ASSERT_OK(disk_->Remove("a"));
  ASSERT_OK(disk_->SyncDirectory());
  ASSERT_OK_AND_ASSIGN(const auto left, disk_->List());
  EXPECT_THAT(left, ElementsAre("b"));
  EXPECT_STATUS(disk_->Remove("a"), absl::StatusCode::kNotFound, directory_ / "a");
  EXPECT_STATUS(disk_->Open("a", Disk::OpenMode::kExisting), absl::StatusCode::kNotFound, directory_ / "a");
}

TEST_P(DiskConformance, AllocateMakesSpaceAndSizeAndKeepsContent) {
  const Buffer content = RandomBytes(kMiB);
  const std::unique_ptr<DiskFile> file = CreateFilled("data", content.bytes());
  ASSERT_OK(file->Allocate(8 * kMiB));
  ASSERT_OK_AND_ASSIGN(uint64_t size, file->Size());
  EXPECT_EQ(size, 8 * kMiB);
  ASSERT_OK_AND_ASSIGN(const uint64_t allocated, file->AllocatedBytes());
  EXPECT_GE(allocated, 8 * kMiB);
  EXPECT_LT(allocated, 9 * kMiB);
  ASSERT_OK(file->Allocate(4 * kMiB));
  ASSERT_OK_AND_ASSIGN(size, file->Size());
  EXPECT_EQ(size, 8 * kMiB);
  const Buffer found = pool_.Acquire(2 * kMiB);
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes().first(kMiB), content.bytes()));
  EXPECT_TRUE(std::all_of(found.data() + kMiB, found.data() + 2 * kMiB,
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(DiskConformance, AllocateOfMoreThanTheDiskHasIsResourceExhausted) {
  const std::unique_ptr<DiskFile> file = Create("data");
  EXPECT_STATUS(file->Allocate(uint64_t{1} << 60), absl::StatusCode::kResourceExhausted, directory_ / "data");
}

TEST_P(DiskConformance, PunchedHoleGivesSpaceBackAndReadsAsZeros) {
  const Buffer content = RandomBytes(8 * kMiB);
  const std::unique_ptr<DiskFile> file = CreateFilled("data", content.bytes());
  ASSERT_OK(file->Sync());
  ASSERT_OK_AND_ASSIGN(const uint64_t before, file->AllocatedBytes());
  ASSERT_OK(file->PunchHole(2 * kMiB, 4 * kMiB));
  ASSERT_OK_AND_ASSIGN(const uint64_t after, file->AllocatedBytes());
  EXPECT_EQ(before - after, 4 * kMiB);
  ASSERT_OK_AND_ASSIGN(const uint64_t size, file->Size());
  EXPECT_EQ(size, 8 * kMiB);
  std::fill_n(content.data() + 2 * kMiB, 4 * kMiB, std::byte{0});
  const Buffer found = pool_.Acquire(8 * kMiB);
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes(), content.bytes()));

  EXPECT_OK(file->PunchHole(0, 0));
  EXPECT_STATUS(file->PunchHole(100, kBlockBytes), absl::StatusCode::kInvalidArgument, "offset 100");
  EXPECT_STATUS(file->PunchHole(0, 100), absl::StatusCode::kInvalidArgument, "length 100");
}

TEST_P(DiskConformance, SpaceIsThatOfTheFileSystem) {
  ASSERT_OK_AND_ASSIGN(const DiskSpace space, disk_->Space());
  const std::filesystem::space_info expected = std::filesystem::space(directory_.path());
  EXPECT_EQ(space.total_bytes, expected.capacity);
  EXPECT_LE(space.available_bytes, space.total_bytes);
  EXPECT_GT(space.available_bytes, 0u);
}

TEST_P(DiskConformance, DescribeNamesTheEngine) {
  const std::string expected = GetParam() == DiskEngine::kUring ? "io_uring (" : "thread pool (";
  EXPECT_EQ(disk_->Describe().substr(0, expected.size()), expected) << disk_->Describe();
}

TEST_P(DiskConformance, CallbacksRunOnceOnTheEnginesThreads) {
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer buffer = RandomBytes(kBlockBytes);
  std::atomic<int> called{0};
  std::atomic<int> elsewhere{0};
  Completions all;
  for (const uint64_t offset : {uint64_t{0}, kBlockBytes, uint64_t{1}, uint64_t{17}}) {
    file->WriteAsync(offset, buffer.bytes(), [&, done = all.Expect()](absl::Status) {
      ++called;
      if (!OnEngineThread()) ++elsewhere;
      done(absl::OkStatus());
    });
  }
  ASSERT_OK(all.Wait());
  EXPECT_EQ(called, 4);
  EXPECT_EQ(elsewhere, 0);
  EXPECT_FALSE(OnEngineThread());
}

// Each callback starts the next operation: as deep as the test likes.
class Chain {
 public:
  Chain(DiskFile* file, MutableBytes memory, int length, DiskFile::Callback done)
      : file_(file), memory_(memory), left_(length), done_(std::move(done)) {}

  void Step(const absl::Status& status) {
    if (!status.ok() || left_ == 0) return done_(status);
    --left_;
    const uint64_t offset = static_cast<uint64_t>(left_ % 16) * memory_.size();
    file_->WriteAsync(offset, memory_, [this](absl::Status result) { Step(result); });
  }

 private:
  DiskFile* const file_;
  const MutableBytes memory_;
  int left_;
  const DiskFile::Callback done_;
};

TEST_P(DiskConformance, CallbacksMayStartOperationsInLongChains) {
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer memory = RandomBytes(kBlockBytes);
  Completions ended;
  std::vector<std::unique_ptr<Chain>> chains;
  for (int i = 0; i < 4; ++i) {
    chains.push_back(std::make_unique<Chain>(file.get(), memory.bytes(), kMoreThanQueued, ended.Expect()));
    chains.back()->Step(absl::OkStatus());
  }
  EXPECT_OK(ended.Wait());
}

TEST_P(DiskConformance, CallbackMayStartMoreOperationsThanTheQueueHolds) {
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer memory = RandomBytes(kBlockBytes);
  Completions ended;
  file->WriteAsync(0, memory.bytes(), [&, first = ended.Expect()](absl::Status status) {
    for (int i = 0; i < kMoreThanQueued; ++i) {
      file->WriteAsync(static_cast<uint64_t>(i) * kBlockBytes, memory.bytes(), ended.Expect());
    }
    first(status);
  });
  EXPECT_OK(ended.Wait());
  EXPECT_EQ(ended.called(), kMoreThanQueued + 1);
}

TEST_P(DiskConformance, CallbacksMayGoAroundBetweenTwoFullDisks) {
  testing::TempDir other_directory;
  ASSERT_OK_AND_ASSIGN(const auto other_disk, OpenDisk(other_directory.path(), GetParam()));
  ASSERT_OK_AND_ASSIGN(const auto there, other_disk->Open("there", Disk::OpenMode::kCreateNew));
  const std::unique_ptr<DiskFile> here = Create("here");
  const Buffer memory = RandomBytes(kBlockBytes);
  Completions ended;
  const auto write_across = [&](DiskFile* from, DiskFile* to) {
    return [&, from, to] {
      for (int i = 0; i < kMoreThanQueued; ++i) {
        from->WriteAsync(0, memory.bytes(), [&memory, to, done = ended.Expect()](absl::Status status) {
          if (!status.ok()) return done(status);
          to->WriteAsync(0, memory.bytes(), done);
        });
      }
    };
  };
  std::thread one(write_across(here.get(), there.get()));
  std::thread two(write_across(there.get(), here.get()));
  one.join();
  two.join();
  EXPECT_OK(ended.Wait());
}

TEST_P(DiskConformance, ManyThreadsMaySubmitAtOnce) {
  constexpr int kThreads = 8;
  constexpr uint64_t kBlocksEach = 256;
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer content = RandomBytes(kThreads * kBlocksEach * kBlockBytes);
  Completions ended;
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 0; i < kBlocksEach; ++i) {
        const uint64_t offset = (thread + i * kThreads) * kBlockBytes;
        file->WriteAsync(offset, content.bytes().subspan(offset, kBlockBytes), ended.Expect());
        if (i % 64 == 0) EXPECT_OK(file->Sync());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_OK(ended.Wait());
  const Buffer found = pool_.Acquire(content.size());
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes(), content.bytes()));
}

TEST_P(DiskConformance, DestructionWaitsForWhatIsQueued) {
  constexpr int kWrites = 120;  // fewer than any engine queues: WriteAsync does not wait for them
  const Buffer content = RandomBytes(kWrites * 16 * kBlockBytes);
  const uint64_t bytes = 16 * kBlockBytes;
  Completions ended;
  {
    const std::unique_ptr<DiskFile> file = Create("data");
    for (uint64_t i = 0; i < kWrites; ++i) {
      file->WriteAsync(i * bytes, content.bytes().subspan(i * bytes, bytes), ended.Expect());
    }
  }
  disk_.reset();
  EXPECT_EQ(ended.called(), kWrites);
  ASSERT_OK(ended.Wait());
  Reopen();
  ASSERT_OK_AND_ASSIGN(const auto file, disk_->Open("data", Disk::OpenMode::kExisting));
  const Buffer found = pool_.Acquire(content.size());
  ASSERT_OK(file->Read(0, found.bytes()));
  EXPECT_TRUE(Equal(found.bytes(), content.bytes()));
}

TEST_P(DiskConformance, DestructionNeverOvertakesAnOperation) {
  const Buffer memory = RandomBytes(kBlockBytes);
  (void)Create("data");
  for (int round = 0; round < 300; ++round) {
    Completions ended;
    {
      ASSERT_OK_AND_ASSIGN(const auto file, disk_->Open("data", Disk::OpenMode::kExisting));
      file->WriteAsync(0, memory.bytes(), ended.Expect());
    }
    disk_.reset();
    ASSERT_EQ(ended.called(), 1);
    ASSERT_OK(ended.Wait());
    Reopen();
  }
}

TEST_P(DiskConformance, DestructionWaitsForWhatCallbacksStart) {
  const Buffer memory = RandomBytes(kBlockBytes);
  std::shared_ptr<DiskFile> file = Create("data");
  std::atomic<int> called{0};
  // The callbacks hold the file, so the last of them destroys it, on the engine's thread.
  struct Repeat {
    std::shared_ptr<DiskFile> file;
    ByteView memory;
    std::atomic<int>* called;
    int left;
    void operator()(absl::Status status) const {
      EXPECT_OK(status);
      ++*called;
      if (left > 0) file->WriteAsync(0, memory, Repeat{file, memory, called, left - 1});
    }
  };
  Repeat first{file, memory.bytes(), &called, 300};
  file->WriteAsync(0, memory.bytes(), std::move(first));
  file.reset();
  disk_.reset();
  EXPECT_EQ(called, 301);
}

// `bytes` of addresses that all lead to the same few pages, page after page, so that much can be registered
// at no cost.
class RepeatedMemory {
 public:
  explicit RepeatedMemory(uint64_t bytes) : bytes_(bytes) {
    const UniqueFd memory(::memfd_create("esker-test", MFD_CLOEXEC));
    ESKER_CHECK(memory && ::ftruncate(memory.get(), kRepeat) == 0);
    start_ = static_cast<std::byte*>(
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (uint64_t at = 0; at < bytes; at += kRepeat) {
      ESKER_CHECK(::mmap(start_ + at, kRepeat, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.get(),
                         0) == start_ + at);
    }
  }
  ~RepeatedMemory() { ::munmap(start_, bytes_); }

  MutableBytes bytes() const { return {start_, bytes_}; }

 private:
  static constexpr uint64_t kRepeat = 8 * kMiB;
  const uint64_t bytes_;
  std::byte* start_;
};

// Whether this process may register so much, asked of the kernel directly.
bool KernelRegisters(MutableBytes memory) {
  io_uring ring;
  if (io_uring_queue_init(1, &ring, 0) != 0) return false;
  const uint64_t half = memory.size() / 2;
  const iovec pieces[] = {{memory.data(), half}, {memory.data() + half, memory.size() - half}};
  const bool registers = io_uring_register_buffers(&ring, pieces, 2) == 0;
  if (registers) io_uring_unregister_buffers(&ring);
  io_uring_queue_exit(&ring);
  return registers;
}

TEST_P(DiskConformance, RegisteredAndOtherMemoryMix) {
  // More than the kernel takes as one buffer.
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  const RepeatedMemory registered(kGiB + 16 * kMiB);
  disk_->RegisterMemory(registered.bytes());
  if (GetParam() == DiskEngine::kUring) {
    const std::string expected = KernelRegisters(registered.bytes()) ? "registered buffers" : "plain buffers";
    EXPECT_THAT(disk_->Describe(), HasSubstr(expected));
  }
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer other = RandomBytes(2 * kMiB);
  const MutableBytes places[] = {
      registered.bytes().first(2 * kMiB),
      registered.bytes().subspan(kGiB - kMiB, 2 * kMiB),  // in two registered pieces
      registered.bytes().last(2 * kMiB),
      other.bytes(),
  };
  const Buffer content = RandomBytes(2 * kMiB);
  for (const MutableBytes from : places) {
    for (const MutableBytes to : places) {
      FillRandom(content.bytes(), &random_);
      std::copy(content.bytes().begin(), content.bytes().end(), from.begin());
      ASSERT_OK(file->Write(kBlockBytes, from));
      std::fill(to.begin(), to.end(), std::byte{0});
      ASSERT_OK(file->Read(kBlockBytes, to));
      ASSERT_TRUE(Equal(to, content.bytes()));
    }
  }
}

TEST_P(DiskConformance, RegisteredMemoryWithManyOperationsInFlight) {
  disk_->RegisterMemory(pool_.memory());
  constexpr uint64_t kBlocks = 1024;
  const std::unique_ptr<DiskFile> file = Create("data");
  const Buffer content = RandomBytes(kBlocks * kBlockBytes);
  const Buffer found = pool_.Acquire(kBlocks * kBlockBytes);
  Completions writes;
  for (const auto& [offset, bytes] : RandomPieces(kBlocks, 5, &random_)) {
    file->WriteAsync(offset, content.bytes().subspan(offset, bytes), writes.Expect());
  }
  ASSERT_OK(writes.Wait());
  Completions reads;
  for (const auto& [offset, bytes] : RandomPieces(kBlocks, 5, &random_)) {
    file->ReadAsync(offset, found.bytes().subspan(offset, bytes), reads.Expect());
  }
  ASSERT_OK(reads.Wait());
  EXPECT_TRUE(Equal(found.bytes(), content.bytes()));
}

TEST_P(DiskConformance, WaitingOnAnEnginesThreadStopsTheProcess) {
  // Forks, so no engine may run. Not re-executed ("threadsafe"): that one's directory would stay behind.
  disk_.reset();
  GTEST_FLAG_SET(death_test_style, "fast");
  EXPECT_DEATH(
      {
        SetUp();
        const Buffer memory = RandomBytes(kBlockBytes);
        const std::unique_ptr<DiskFile> file = Create("data");
        Completions ended;
        file->WriteAsync(0, memory.bytes(),
                         [&, done = ended.Expect()](absl::Status) { done(file->Read(0, memory.bytes())); });
        (void)ended.Wait();
      },
      "OnEngineThread");
}

TEST_P(DiskConformance, FullDiskIsResourceExhaustedAndWorksAgainAfterRemoving) {
  // Forks, so no engine may run: the child opens its own.
  disk_.reset();
  EXPECT_CHILD_PASSES([&] {
    const std::string refused = testing::MountPrivately("tmpfs", directory_.path(), "size=1m");
    if (!refused.empty()) GTEST_SKIP() << refused;
    SetUp();
    const Buffer content = RandomBytes(2 * kMiB);
    const MutableBytes half = content.bytes().first(kMiB / 2);
    std::unique_ptr<DiskFile> file = CreateFilled("kept", half);
    std::unique_ptr<DiskFile> full = Create("full");
    EXPECT_STATUS(full->Write(0, content.bytes()), absl::StatusCode::kResourceExhausted,
                  "2097152 bytes at offset 0");
    EXPECT_STATUS(full->Write(0, content.bytes()), absl::StatusCode::kResourceExhausted, directory_ / "full");
    EXPECT_STATUS(full->Allocate(4 * kMiB), absl::StatusCode::kResourceExhausted, directory_ / "full");
    const Buffer found = pool_.Acquire(half.size());
    EXPECT_OK(file->Read(0, found.bytes()));
    EXPECT_TRUE(Equal(found.bytes(), half));
    full.reset();
    EXPECT_OK(disk_->Remove("full"));
    EXPECT_OK(Create("again")->Write(0, half.first(kMiB / 4)));
    file.reset();
    disk_.reset();
  });
}

}  // namespace
}  // namespace esker
