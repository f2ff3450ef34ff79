// Many threads at once; above all for ThreadSanitizer.
#include <atomic>
#include <random>
#include <thread>

#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

constexpr int kThreads = 8;
constexpr uint64_t kRounds = 12;

class StoreConcurrencyTest : public StoreTest {
 protected:
  // Saves, reads back, removes; chunks are shared between the threads, so that they let go of each other's
  // all the time.
  void Work(uint64_t seed, uint64_t worker) {
    std::mt19937_64 random(seed + worker);
    for (uint64_t round = 0; round < kRounds && !::testing::Test::HasFailure(); ++round) {
      const PartRef part = MakePart(worker * 1000 + round, static_cast<uint32_t>(worker));
      std::vector<TestChunk> chunks;
      for (int i = 0; i < 5; ++i) {
        const uint64_t chunk_seed = random() % 24;
        chunks.push_back(MakeChunk(chunk_seed, 1000 + chunk_seed * 9000));
      }
      EXPECT_OK(store_->Reserve(part, kMiB));
      if (random() % 4 == 0) {
        EXPECT_OK(PutChunk(store_.get(), part, chunks[0]));
        store_->EndSave(part.save);
        continue;
      }
      const uint64_t lease = store_->OpenRead(part.save);
      const absl::StatusOr<SealResult> sealed = SavePart(store_.get(), part, chunks);
      EXPECT_OK(sealed);
      if (!sealed.ok()) return;
      EXPECT_TRUE(sealed->missing.empty());
      EXPECT_OK(store_->PutManifest(part.save, "manifest"));
      EXPECT_OK(CheckPart(store_.get(), part, chunks));
      store_->CloseRead(lease);
      if (round % 3 != 2) EXPECT_OK(store_->RemoveSave(part.save));
      if (random() % 8 == 0) {
        EXPECT_OK(store_->CheckConsistency());
        EXPECT_OK(store_->Stats());
        EXPECT_OK(store_->ListSaves());
        store_->OpenSaves();
      }
    }
  }
};

TEST_F(StoreConcurrencyTest, ManyThreadsSaveReadAndRemove) {
  const uint64_t seed = TestSeed();
  options_.recycle_bytes = 16 * kMiB;
  Open();
  std::vector<std::thread> threads;
  for (uint64_t worker = 0; worker < kThreads; ++worker)
    threads.emplace_back([this, seed, worker] { Work(seed, worker); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_OK(store_->CheckConsistency());
  Reopen();
  ASSERT_OK(store_->CheckConsistency());
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, store_->ListSaves());
  for (const SaveRef& save : saves) ASSERT_OK(store_->RemoveSave(save));
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 0u);
  EXPECT_EQ(stats.live_bytes, 0u);
  EXPECT_EQ(stats.layouts, 0u);
}

TEST_F(StoreConcurrencyTest, ClosingWaitsForOperationsUnderWay) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 4, 100'000)));
  std::atomic<int> ended = 0;
  for (const TestChunk& chunk : MakeChunks(1, 4, 100'000)) {
    store_->ReadChunk(chunk.hash(), ReadMode::kFromDisk, [&](const ChunkReadOr& read) {
      EXPECT_OK(read);
      ++ended;
    });
  }
  for (const TestChunk& chunk : MakeChunks(10, 4, 100'000)) {
    Buffer record = store_->buffers()->Acquire(chunk.record_bytes());
    std::memcpy(record.data() + PayloadOffset(chunk.info.stored_bytes), chunk.raw.data(), chunk.raw.size());
    store_->Put(MakePart(2), chunk.info, std::move(record), [&](const absl::Status& status) {
      EXPECT_OK(status);
      ++ended;
    });
  }
  Close();
  EXPECT_EQ(ended, 8);
}

}  // namespace
}  // namespace esker::testing
