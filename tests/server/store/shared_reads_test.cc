// Through a whole store: who reads from the disk, and who from another's read.
#include "server/store/shared_reads.h"

#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <thread>

#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

class SharedReadsTest : public StoreTest {
 protected:
  void SetUp() override {
    options_.buffer_pool_bytes = 64 * kMiB;  // enough to keep all three chunks
    Open();
    ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks_));
  }

  // The content, or what went wrong.
  static std::string Found(const ChunkReadOr& read) {
    return read.ok() ? std::string(AsText((*read)->stored())) : std::string(read.status().message());
  }
  std::string Read(const TestChunk& chunk) {
    return Found(ReadRecord(store_.get(), chunk.hash(), ReadMode::kShared));
  }
  // What two readers get of which one comes while the other's read, which ends with `status`, is under way.
  std::vector<std::string> ReadTwiceAtOnce(const TestChunk& chunk, const absl::Status& status) {
    std::promise<void> go_on;
    std::promise<void> reading;
    faults_.SetHook([&](const DiskEvent& event) -> absl::Status {
      if (event.op != DiskOp::kRead) return absl::OkStatus();
      reading.set_value();
      go_on.get_future().wait();
      return status;
    });
    std::string first;
    std::thread reader([&] { first = Read(chunk); });
    reading.get_future().wait();
    std::promise<std::string> second;
    store_->ReadChunk(chunk.hash(), ReadMode::kShared,
                      [&](const ChunkReadOr& read) { second.set_value(Found(read)); });
    go_on.set_value();
    reader.join();
    const std::string found = second.get_future().get();
    faults_.SetHook(nullptr);
    return {first, found};
  }
  uint64_t OpenRead() { return store_->OpenRead(MakePart(1).save); }
  uint64_t DiskReads() const { return faults_.count(DiskOp::kRead); }

  const std::vector<TestChunk> chunks_ = MakeChunks(1, 3, 100'000);
};

TEST_F(SharedReadsTest, WhoComesDuringAReadWaitsForIt) {
  const uint64_t before = DiskReads();
  const std::vector<std::string> found = ReadTwiceAtOnce(chunks_[0], absl::OkStatus());
  EXPECT_EQ(found, (std::vector<std::string>{chunks_[0].raw, chunks_[0].raw}));
  EXPECT_EQ(DiskReads() - before, 1u);
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks_read, 1u);
  EXPECT_EQ(stats.chunk_reads_joined, 1u);
}

TEST_F(SharedReadsTest, WhoComesSoonAfterFindsWhatIsKept) {
  OpenRead();
  OpenRead();
  const uint64_t before = DiskReads();
  for (int reader = 0; reader < 2; ++reader) {
    for (const TestChunk& chunk : chunks_) EXPECT_EQ(Read(chunk), chunk.raw);
  }
  EXPECT_EQ(DiskReads() - before, chunks_.size());
}

TEST_F(SharedReadsTest, ASoleReaderKeepsNothing) {
  const uint64_t first = OpenRead();
  const uint64_t second = OpenRead();
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
  EXPECT_GT(store_->buffers()->in_use_bytes(), 0u);
  store_->CloseRead(first);
  EXPECT_EQ(store_->buffers()->in_use_bytes(), 0u) << "given back when the last but one reader went";
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
  EXPECT_EQ(store_->buffers()->in_use_bytes(), 0u);
  store_->CloseRead(second);
}

TEST_F(SharedReadsTest, VerificationAsksTheDisk) {
  OpenRead();
  OpenRead();
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
  const uint64_t before = DiskReads();
  EXPECT_OK(ReadRecord(store_.get(), chunks_[0].hash(), ReadMode::kFromDisk));
  EXPECT_EQ(DiskReads() - before, 1u);
}

TEST_F(SharedReadsTest, AFailureIsEverybodysAndNotKept) {
  OpenRead();
  OpenRead();
  for (const std::string& found : ReadTwiceAtOnce(chunks_[0], absl::DataLossError("a bad sector"))) {
    EXPECT_THAT(found, ::testing::HasSubstr("a bad sector"));
  }
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
}

TEST_F(SharedReadsTest, KeptChunksLeaveRoomForTheLargestPiece) {
  Close();
  const uint64_t largest = RecordBytes(kMaxChunkBytes);
  options_.buffer_pool_bytes = 4 * largest;
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(10, 5, kMaxChunkBytes);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), chunks));
  OpenRead();
  OpenRead();
  for (const TestChunk& chunk : chunks) EXPECT_EQ(Read(chunk), chunk.raw);
  EXPECT_EQ(store_->buffers()->in_use_bytes(), largest);
  EXPECT_EQ(store::KeptChunksFor(3 * largest), 0u);
}

TEST_F(SharedReadsTest, WhatDeadReadersLeaveGoesWhenASaveNeedsMemory) {
  OpenRead();
  OpenRead();
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
  clock_.Advance(static_cast<int64_t>(options_.read_lease_ttl_ms));
  EXPECT_GT(store_->buffers()->in_use_bytes(), 0u);
  ASSERT_OK(store_->Reserve(MakePart(2), 1000));
  EXPECT_EQ(store_->buffers()->in_use_bytes(), 0u);
}

TEST_F(SharedReadsTest, ManyReadersOfTheSamePartGetTheSame) {
  constexpr int kReaders = 8;
  const std::vector<TestChunk> chunks = MakeChunks(100, 40, 50'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), chunks));
  for (int i = 0; i < kReaders; ++i) OpenRead();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.emplace_back([&] {
      for (const TestChunk& chunk : chunks) wrong += Read(chunk) != chunk.raw;
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks_read + stats.chunk_reads_joined, kReaders * chunks.size());
}

}  // namespace
}  // namespace esker::testing
