// Space: promises, removal, recycling, and what keeps a chunk alive.
#include <filesystem>
#include <fstream>
#include <future>

#include "format/base/text.h"
#include "format/segment_header.h"
#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

class StoreSpaceTest : public StoreTest {
 protected:
  // Waits until nothing is left to be given back in the background.
  void AwaitLiveBytes(uint64_t live_bytes) {
    while (true) {
      ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
      if (stats.live_bytes == live_bytes) break;
      std::this_thread::yield();
    }
  }
};

// --- promises ------------------------------------------------------------------------------------

TEST_F(StoreSpaceTest, DiskFullRefusesReserveWithFigures) {
  options_.min_free_bytes = 100 * kMiB;
  faults_.SetAvailable(300 * kMiB);
  Open();
  ASSERT_OK(store_->Reserve(MakePart(1), 150 * kMiB));
  const absl::Status refused = store_->Reserve(MakePart(2), 100 * kMiB);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  // What is needed, what the disk has, what is kept free, what is promised.
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  for (const uint64_t figure : {300 * kMiB, 100 * kMiB, stats.reserved_bytes, stats.disk.total_bytes}) {
    EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr(StrCat(" ", figure, " ")));
  }
  EXPECT_GE(stats.reserved_bytes, 150 * kMiB);
  EXPECT_LT(stats.reserved_bytes, 151 * kMiB);

  // A promise is replaced, and ends with its save.
  EXPECT_OK(store_->Reserve(MakePart(1), 50 * kMiB));
  EXPECT_OK(store_->Reserve(MakePart(2), 100 * kMiB));
  EXPECT_STATUS(store_->Reserve(MakePart(1), 150 * kMiB), absl::StatusCode::kResourceExhausted, "run@1");
  store_->EndSave(MakePart(2).save);
  EXPECT_OK(store_->Reserve(MakePart(1), 150 * kMiB));
}

TEST_F(StoreSpaceTest, APromiseShrinksAsItsRecordsAreWritten) {
  Open();
  const PartRef part = MakePart(1);
  ASSERT_OK(store_->Reserve(part, 2 * kMiB));
  ASSERT_OK_AND_ASSIGN(const StoreStats before, store_->Stats());
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, kMiB);
  ASSERT_OK(PutChunk(store_.get(), part, chunks[0]));
  ASSERT_OK_AND_ASSIGN(const StoreStats after, store_->Stats());
  EXPECT_EQ(after.reserved_bytes, before.reserved_bytes - RecordBytes(kMiB));
  // Asked for again (the client connected anew), it is not promised twice.
  ASSERT_OK(store_->Reserve(part, 2 * kMiB));
  ASSERT_OK_AND_ASSIGN(const StoreStats again, store_->Stats());
  EXPECT_EQ(again.reserved_bytes, after.reserved_bytes);
  ASSERT_OK(SavePart(store_.get(), part, chunks));
  ASSERT_OK_AND_ASSIGN(const StoreStats sealed, store_->Stats());
  EXPECT_EQ(sealed.reserved_bytes, 0u);
}

TEST_F(StoreSpaceTest, FreeSegmentsCountAsAvailable) {
  options_.min_free_bytes = 0;
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 10, 3 * kMiB)));
  faults_.SetAvailable(0);
  EXPECT_STATUS(store_->Reserve(MakePart(2), 20 * kMiB), absl::StatusCode::kResourceExhausted, "run@2");
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_OK(store_->Reserve(MakePart(2), 20 * kMiB));
}

// --- removal -------------------------------------------------------------------------------------

TEST_F(StoreSpaceTest, SpaceFallsByWhatRemoveReports) {
  options_.recycle_bytes = 0;
  Open();
  // Chunks of two saves alternate in the segments, and some are shared.
  const std::vector<TestChunk> shared = MakeChunks(1000, 5, 300'000);
  std::vector<TestChunk> first = MakeChunks(1, 60, 500'000);
  std::vector<TestChunk> second = MakeChunks(100, 60, 500'000);
  for (size_t i = 0; i < first.size(); ++i) {
    ASSERT_OK(PutChunk(store_.get(), MakePart(1), first[i]));
    ASSERT_OK(PutChunk(store_.get(), MakePart(2), second[i]));
  }
  first.insert(first.end(), shared.begin(), shared.end());
  second.insert(second.end(), shared.begin(), shared.end());
  ASSERT_OK(SavePart(store_.get(), MakePart(1), first));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), second));

  const uint64_t before = SegmentDiskBytes();
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.parts, 1u);
  EXPECT_EQ(removed.chunks, 60u);
  EXPECT_EQ(removed.chunk_bytes, 60 * RecordBytes(500'000));
  EXPECT_EQ(SegmentDiskBytes(), before - removed.disk_bytes_freed);
  EXPECT_GE(removed.disk_bytes_freed,
            removed.chunk_bytes * 99 / 100);  // holes cost the file system some blocks
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), second));
  EXPECT_OK(store_->CheckConsistency());

  const uint64_t between = SegmentDiskBytes();
  ASSERT_OK_AND_ASSIGN(const RemovedSpace rest, store_->RemoveSave(MakePart(2).save));
  EXPECT_EQ(rest.chunks, 65u);
  EXPECT_EQ(SegmentDiskBytes(), between - rest.disk_bytes_freed);
  EXPECT_EQ(SegmentDiskBytes(), 0u);
  EXPECT_EQ(FilesIn(segments_path()), 0u);
  ASSERT_OK_AND_ASSIGN(const RemovedSpace nothing, store_->RemoveSave(MakePart(2).save));
  EXPECT_EQ(nothing.parts, 0u);
  EXPECT_EQ(nothing.disk_bytes_freed, 0u);
}

TEST_F(StoreSpaceTest, RemovingASaveRemovesAllOfIt) {
  Open();
  const SaveRef save = MakePart(1).save;
  for (uint32_t rank = 0; rank < 5; ++rank) {
    ASSERT_OK(SavePart(store_.get(), MakePart(1, rank), MakeChunks(rank, 2, 5000)));
  }
  ASSERT_OK(store_->PutManifest(save, "manifest"));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(0, 2, 5000)));
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(save));
  EXPECT_EQ(removed.parts, 5u);
  EXPECT_EQ(removed.chunks, 4u);  // of 6: ranks share some, and two are the other save's
  EXPECT_STATUS(store_->GetManifest(save), absl::StatusCode::kNotFound, "run@1");
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ranks, store_->PartRanks(save));
  EXPECT_TRUE(ranks.empty());
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, store_->ListSaves());
  EXPECT_EQ(saves, std::vector<SaveRef>{MakePart(2).save});
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), MakeChunks(0, 2, 5000)));
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), MakeChunks(0, 2, 5000)));
  EXPECT_OK(store_->CheckConsistency());
}

// --- recycling -----------------------------------------------------------------------------------

TEST_F(StoreSpaceTest, RecycledSegmentHasNewGeneration) {
  Open();
  const std::vector<TestChunk> old_chunks = MakeChunks(1, 6, 4 * kMiB);  // two segments
  ASSERT_OK(SavePart(store_.get(), MakePart(1), old_chunks));
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.segments_recycled, 2u);
  EXPECT_GE(removed.recycled_bytes, 24 * kMiB);
  ASSERT_OK_AND_ASSIGN(StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.free_segments, 2u);
  EXPECT_EQ(FilesIn(segments_path()), 2u);

  const std::vector<TestChunk> new_chunks = MakeChunks(100, 1, 4 * kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), new_chunks));
  EXPECT_EQ(FilesIn(segments_path()), 2u);
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(new_chunks[0].hash()));
  std::string block(kFirstRecordOffset, '\0');
  std::ifstream(location.file, std::ios::binary).read(block.data(), kFirstRecordOffset);
  ASSERT_OK_AND_ASSIGN(const SegmentHeader header, DecodeSegmentHeader(AsBytes(block)));
  EXPECT_EQ(header.generation, 2u);
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), new_chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, FreeSegmentsBeyondTheLimitAreUnlinked) {
  options_.recycle_bytes = 20 * kMiB;  // one
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 10, 4 * kMiB)));
  EXPECT_EQ(FilesIn(segments_path()), 4u);
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.segments_recycled, 1u);
  EXPECT_EQ(FilesIn(segments_path()), 1u);
  EXPECT_EQ(SegmentDiskBytes(), removed.recycled_bytes);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, HolesOfARecycledSegmentAreFilledBeforeItIsUsed) {
  options_.recycle_bytes = 64 * kMiB;
  Open();
  // The first chunk stays when the others go, then it goes, too: its segment is full of holes.
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 4 * kMiB);
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunks[0]));
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {chunks[0]}));
  ASSERT_OK(
      SavePart(store_.get(), MakePart(3), MakeChunks(50, 3, 4 * kMiB)));  // another segment is active now
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  ASSERT_OK(SavePart(store_.get(), MakePart(4), MakeChunks(60, 3, 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(62, 4 * kMiB).hash()));
  EXPECT_EQ(std::filesystem::path(location.file).filename(), SegmentFileName(1));
  EXPECT_OK(CheckPart(store_.get(), MakePart(4), MakeChunks(60, 3, 4 * kMiB)));
  EXPECT_OK(store_->CheckConsistency());
}

// --- the stock of written segments ---------------------------------------------------------------

TEST_F(StoreSpaceTest, AQuietStoreWritesSegmentsAheadOfUse) {
  options_.recycle_bytes = 32 * kMiB;
  Open();
  clock_.Advance(1000);
  while (faults_.count(DiskOp::kSync) < 2) std::this_thread::yield();
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.free_segments, 2u);
  EXPECT_OK(store_->CheckConsistency());
  const std::vector<TestChunk> chunks = MakeChunks(1, 6, 4 * kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  EXPECT_EQ(FilesIn(segments_path()), 2u);
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, TheStockIsWhatASaveTook) {
  Open();
  for (uint64_t step = 0; step < 9; ++step) {
    ASSERT_OK(SavePart(store_.get(), MakePart(step), MakeChunks(10 * step, 4, 4 * kMiB)));  // two segments
    store_->EndSave(MakePart(step).save);
    ASSERT_OK(store_->RemoveSave(MakePart(step).save));
  }
  clock_.Advance(1000);
  StoreStats stats;
  while (stats.free_segments != 3) {
    ASSERT_OK_AND_ASSIGN(stats, store_->Stats());
    std::this_thread::yield();
  }
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, TheStockWaitsForOpenSaves) {
  Open();
  ASSERT_OK(store_->Reserve(MakePart(1), kMiB));
  clock_.Advance(60'000);
  std::this_thread::sleep_for(std::chrono::milliseconds(600));  // it looks every 250 ms
  EXPECT_EQ(faults_.count(DiskOp::kCreate), 0u);
  store_->EndSave(MakePart(1).save);
  clock_.Advance(1000);
  while (faults_.count(DiskOp::kCreate) == 0) std::this_thread::yield();
}

TEST_F(StoreSpaceTest, TheStockWaitsForReads) {
  options_.recycle_bytes = 32 * kMiB;
  Open();
  const TestChunk chunk = MakeChunk(1, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  std::atomic<bool> stop = false;
  std::future<void> reads = std::async(std::launch::async, [&] {
    while (!stop) EXPECT_OK(ReadRecord(store_.get(), chunk.hash()));
  });
  clock_.Advance(60'000);
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  EXPECT_EQ(faults_.count(DiskOp::kCreate), 1u);
  stop = true;
  reads.wait();
  // Enough, whether or not it has looked since the last read.
  while (faults_.count(DiskOp::kCreate) == 1) {
    clock_.Advance(1000);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

TEST_F(StoreSpaceTest, TheStockStopsWhenASaveBegins) {
  Open();
  faults_.SetHook([&](const DiskEvent& event) {
    // The third piece is on its way to the disk.
    if (event.op == DiskOp::kWrite && event.number == 4) EXPECT_OK(store_->Reserve(MakePart(1), kMiB));
    return absl::OkStatus();
  });
  clock_.Advance(1000);
  while (faults_.count(DiskOp::kWrite) < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(faults_.count(DiskOp::kWrite), 4u);  // a header and three pieces
  faults_.SetHook(nullptr);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 3, 4 * kMiB)));
  EXPECT_EQ(FilesIn(segments_path()), 1u);
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), MakeChunks(1, 3, 4 * kMiB)));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, AStockUnderWayTakesNothingFromPromises) {
  options_.min_free_bytes = 0;
  Open();
  faults_.SetAvailable(16 * kMiB);  // one segment
  clock_.Advance(1000);
  while (faults_.count(DiskOp::kWrite) < 3) std::this_thread::yield();
  faults_.SetAvailable(0);  // which the stock has taken
  EXPECT_OK(store_->Reserve(MakePart(1), 15 * kMiB));
  EXPECT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 15, kMiB - 4096)));
  EXPECT_EQ(faults_.count(DiskOp::kCreate), 1u);
}

TEST_F(StoreSpaceTest, UnsealedDataIsReclaimedAtTheEndOfItsSave) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 2, kMiB)));
  ASSERT_OK_AND_ASSIGN(const StoreStats before, store_->Stats());
  const uint64_t punched = faults_.count(DiskOp::kPunch);
  for (const TestChunk& chunk : MakeChunks(10, 5, kMiB))
    ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunk));
  store_->EndSave(MakePart(2).save);
  while (faults_.count(DiskOp::kPunch) == punched) std::this_thread::yield();
  ASSERT_OK(store_->RemoveSave(MakePart(9).save));  // waits for the background's turn
  ASSERT_OK_AND_ASSIGN(const StoreStats after, store_->Stats());
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_LE(after.allocated_bytes, before.allocated_bytes - 5 * RecordBytes(kMiB) + 65536);
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing,
                       store_->Offer(MakePart(3), HashesOf(MakeChunks(10, 5, kMiB))));
  EXPECT_EQ(missing, std::vector<bool>(5, true));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, AWriteWhoseSaveEndedIsForgotten) {
  Open();
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), MakeChunk(1, 100)));
  faults_.HoldWrites();
  const TestChunk chunk = MakeChunk(2, kMiB);
  std::future<absl::Status> put =
      std::async(std::launch::async, [&] { return PutChunk(store_.get(), MakePart(2), chunk); });
  faults_.AwaitHeldWrites(1);
  store_->EndSave(MakePart(2).save);
  faults_.ReleaseWrites();
  EXPECT_OK(put.get());
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(MakePart(3), {chunk.hash()}));
  EXPECT_TRUE(missing[0]);
  EXPECT_OK(store_->CheckConsistency());
}

// --- pins ----------------------------------------------------------------------------------------

TEST_F(StoreSpaceTest, PinnedChunkSurvivesRemoval) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  // Offered to another save: it stays though the last part that names it goes.
  const PartRef next = MakePart(2);
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing,
                       store_->Offer(next, {chunks[0].hash(), chunks[1].hash()}));
  EXPECT_EQ(missing, std::vector<bool>(2, false));
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.chunks, 1u);
  EXPECT_OK(store_->CheckConsistency());
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[2].hash()), absl::StatusCode::kNotFound,
                chunks[2].hash().ToHex());
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SealChunks(store_.get(), next, {chunks[0]}));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_EQ(sealed.entry.new_stored_bytes(), 0u);
  EXPECT_OK(CheckPart(store_.get(), next, {chunks[0]}));
  // The other was pinned, but not sealed: it goes with the pin.
  AwaitLiveBytes(RecordBytes(100'000));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, TheLastUnpinReapsAcrossARestart) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK(store_->Offer(MakePart(2), HashesOf(chunks)));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK_AND_ASSIGN(StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 2u);
  Reopen();
  ASSERT_OK_AND_ASSIGN(stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 0u);
  EXPECT_EQ(stats.live_bytes, 0u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, EndSaveReapsWhatItPinned) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK(store_->Offer(MakePart(2), HashesOf(chunks)));
  ASSERT_OK(store_->Offer(MakePart(3), HashesOf(chunks)));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  store_->EndSave(MakePart(2).save);
  ASSERT_OK_AND_ASSIGN(StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 2u);
  store_->EndSave(MakePart(3).save);
  AwaitLiveBytes(0);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, AReadUnderWayKeepsItsChunk) {
  Open();
  const TestChunk chunk = MakeChunk(1, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  // The read is on its way to the disk when the save is removed.
  std::promise<void> reading;
  std::promise<void> go_on;
  faults_.SetHook([&](const DiskEvent& event) {
    if (event.op == DiskOp::kRead) {
      reading.set_value();
      go_on.get_future().wait();
    }
    return absl::OkStatus();
  });
  auto read = std::async(std::launch::async, [&] { return ReadRecord(store_.get(), chunk.hash()); });
  reading.get_future().wait();
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.parts, 1u);
  EXPECT_EQ(removed.chunks, 0u);
  go_on.set_value();
  ChunkReadOr result = read.get();
  ASSERT_OK(result);
  EXPECT_EQ(AsText((*result)->stored()), chunk.raw);
  result = absl::CancelledError("");  // gives the buffer back
  faults_.SetHook(nullptr);
  AwaitLiveBytes(0);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreSpaceTest, OfferDuringRemovalEitherPinsOrSendsAnew) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 20, 20'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(0), chunks));
  for (uint64_t step = 1; step < 40; ++step) {
    std::future<absl::StatusOr<RemovedSpace>> removal =
        std::async(std::launch::async, [&, step] { return store_->RemoveSave(MakePart(step - 1).save); });
    ASSERT_OK(SavePart(store_.get(), MakePart(step), chunks));
    ASSERT_OK(removal.get());
    ASSERT_OK(CheckPart(store_.get(), MakePart(step), chunks));
  }
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 20u);
}

}  // namespace
}  // namespace esker::testing
