// Through a whole store: who reads from the disk, and who from another's read.
#include "server/store/shared_reads.h"

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

  std::string Read(const TestChunk& chunk) {
    const ChunkReadOr read = ReadRecord(store_.get(), chunk.hash(), ReadMode::kShared);
    return read.ok() ? std::string(AsText((*read)->stored())) : std::string(read.status().message());
  }
  uint64_t OpenRead() { return store_->OpenRead(MakePart(1).save); }
  uint64_t DiskReads() const { return faults_.count(DiskOp::kRead); }

  const std::vector<TestChunk> chunks_ = MakeChunks(1, 3, 100'000);
};

TEST_F(SharedReadsTest, WhoComesDuringAReadWaitsForIt) {
  std::promise<void> go_on;
  std::promise<void> reading;
  faults_.SetHook([&, gate = go_on.get_future().share()](const DiskEvent& event) {
    if (event.op == DiskOp::kRead) {
      reading.set_value();
      gate.wait();
    }
    return absl::OkStatus();
  });
  const uint64_t before = DiskReads();
  std::string first;
  std::thread reader([&] { first = Read(chunks_[0]); });
  reading.get_future().wait();
  std::promise<std::string> second;
  store_->ReadChunk(chunks_[0].hash(), ReadMode::kShared, [&](const ChunkReadOr& read) {
    second.set_value(read.ok() ? std::string(AsText((*read)->stored())) : "");
  });
  go_on.set_value();
  reader.join();
  EXPECT_EQ(first, chunks_[0].raw);
  EXPECT_EQ(second.get_future().get(), chunks_[0].raw);
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
  faults_.FailNext(DiskOp::kRead, 1, absl::DataLossError("a bad sector"));
  EXPECT_STATUS(ReadRecord(store_.get(), chunks_[0].hash(), ReadMode::kShared), absl::StatusCode::kDataLoss,
                "a bad sector");
  EXPECT_EQ(Read(chunks_[0]), chunks_[0].raw);
}

TEST_F(SharedReadsTest, KeptChunksLeaveRoomForTheLargestPiece) {
  Close();
  options_.buffer_pool_bytes = 4 * RecordBytes(kMaxChunkBytes) + (1 << 20);
  Open();
  OpenRead();
  OpenRead();
  const size_t kept = store::KeptChunksFor(options_.buffer_pool_bytes);
  EXPECT_EQ(kept, 1u);
  for (const TestChunk& chunk : chunks_) EXPECT_EQ(Read(chunk), chunk.raw);
  const Buffer largest = store_->buffers()->Acquire(RecordBytes(kMaxChunkBytes));  // would block for ever
  EXPECT_TRUE(largest);
  EXPECT_EQ(store::KeptChunksFor(RecordBytes(kMaxChunkBytes)), 0u);
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
