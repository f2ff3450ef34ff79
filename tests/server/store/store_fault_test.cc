// When the disk fails.
#include <fcntl.h>
#include <unistd.h>

#include <fstream>
#include <future>
#include <set>

#include "format/base/text.h"
#include "format/segment_header.h"
#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

using StoreFaultTest = StoreTest;

const absl::Status kBroken = absl::DataLossError("the test broke it");

void FlipByte(const std::string& path, uint64_t offset) {
  const int fd = ::open(path.c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  char byte = 0;
  ASSERT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(offset)), 1);
  byte = static_cast<char>(byte ^ 0x10);
  ASSERT_EQ(::pwrite(fd, &byte, 1, static_cast<off_t>(offset)), 1);
  ASSERT_EQ(::fsync(fd), 0);
  ::close(fd);
}

TEST_F(StoreFaultTest, FailedFsyncRetiresSegmentAndTheClientSendsAgain) {
  Open();
  const std::vector<TestChunk> durable = MakeChunks(1, 2, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), durable));

  const PartRef part = MakePart(2);
  std::vector<TestChunk> chunks = MakeChunks(10, 3, 100'000);
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), part, chunk));
  chunks.push_back(durable[0]);
  faults_.FailNext(DiskOp::kSync, 1, kBroken);
  ASSERT_OK_AND_ASSIGN(SealResult sealed, SealChunks(store_.get(), part, chunks));
  EXPECT_EQ(sealed.missing, HashesOf(MakeChunks(10, 3, 100'000)));
  ASSERT_OK_AND_ASSIGN(StoreStats stats, store_->Stats());
  ASSERT_EQ(stats.failed_segments.size(), 1u);
  EXPECT_THAT(stats.failed_segments[0], ::testing::HasSubstr("segment-0000000000000001.esk"));
  EXPECT_THAT(stats.failed_segments[0], ::testing::HasSubstr("the test broke it"));

  // Never synced again; what was durable can be read; new records go elsewhere.
  faults_.SetHook([](const DiskEvent& event) {
    const bool again = event.op == DiskOp::kSync && event.file == "segment-0000000000000001.esk";
    return again ? absl::InternalError("synced a segment whose fsync failed") : absl::OkStatus();
  });
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), durable));
  ASSERT_OK(SavePart(store_.get(), part, chunks));
  EXPECT_OK(CheckPart(store_.get(), part, chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(chunks[0].hash()));
  EXPECT_THAT(location.file, ::testing::HasSubstr("segment-0000000000000002.esk"));
  EXPECT_OK(store_->CheckConsistency());

  // For good.
  Reopen();
  ASSERT_OK_AND_ASSIGN(stats, store_->Stats());
  EXPECT_EQ(stats.failed_segments.size(), 1u);
  ASSERT_OK(SavePart(store_.get(), MakePart(3), MakeChunks(20, 1, 100'000)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation next, store_->Locate(MakeChunk(20, 100'000).hash()));
  EXPECT_THAT(next.file, ::testing::HasSubstr("segment-0000000000000002.esk"));

  // Until nothing is left in it.
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(store_->RemoveSave(part.save));
  ASSERT_OK_AND_ASSIGN(stats, store_->Stats());
  EXPECT_TRUE(stats.failed_segments.empty());
  EXPECT_EQ(stats.segments, 1u);
  Reopen();
  ASSERT_OK_AND_ASSIGN(stats, store_->Stats());
  EXPECT_TRUE(stats.failed_segments.empty());
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, AFailedFsyncSparesWhatWasSyncedBefore) {
  Open();
  // Two parts' chunks in one segment: the first sync makes both durable, though only one part is sealed.
  const TestChunk early = MakeChunk(1, 10'000);
  const TestChunk late = MakeChunk(2, 10'000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), early));
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(10, 1, 10'000)));
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), late));
  faults_.FailNext(DiskOp::kSync, 1, kBroken);
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SealChunks(store_.get(), MakePart(2), {early, late}));
  EXPECT_EQ(sealed.missing, std::vector<Hash128>{late.hash()});
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {early, late}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {early, late}));
}

TEST_F(StoreFaultTest, FailedWriteGoesToAnotherSegment) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunks[0]));
  faults_.FailNext(DiskOp::kWrite, 1, kBroken);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunks[1]));
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SavePart(store_.get(), MakePart(1), chunks));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.failed_segments.size(), 1u);
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, TornWriteGoesToAnotherSegment) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunks[0]));
  faults_.TearNextWrite();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, AWriteGivesUpInTheEnd) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, 5000)));
  faults_.SetHook([](const DiskEvent& event) {
    return event.op == DiskOp::kWrite && event.offset > 0 ? kBroken : absl::OkStatus();
  });
  const TestChunk chunk = MakeChunk(2, 5000);
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(2), chunk), absl::StatusCode::kDataLoss, "the test broke it");
  faults_.SetHook(nullptr);
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(MakePart(2), {chunk.hash()}));
  EXPECT_TRUE(missing[0]);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {chunk}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {chunk}));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, EveryWaiterHearsOfAFailedWrite) {
  Open();
  faults_.SetHook([](const DiskEvent& event) {
    return event.op == DiskOp::kWrite && event.offset > 0 ? kBroken : absl::OkStatus();
  });
  faults_.HoldWrites();
  // Each new segment's header is a write as well: those must not be held back.
  faults_.ReleaseWrites();
  const TestChunk chunk = MakeChunk(1, 5000);
  std::vector<std::future<absl::Status>> puts;
  for (uint32_t rank = 0; rank < 3; ++rank) {
    puts.push_back(std::async(std::launch::async,
                              [&, rank] { return PutChunk(store_.get(), MakePart(1, rank), chunk); }));
  }
  for (auto& put : puts) EXPECT_STATUS(put.get(), absl::StatusCode::kDataLoss, "the test broke it");
}

TEST_F(StoreFaultTest, AFullDiskStopsPutsAndNothingElse) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 4 * kMiB);  // a segment full
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  faults_.SetAvailable(12345678);
  faults_.SetHook([](const DiskEvent& event) {
    return event.op == DiskOp::kAllocate ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  });
  const TestChunk more = MakeChunk(50, 4 * kMiB);
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(2), more), absl::StatusCode::kResourceExhausted, "12345678");
  EXPECT_EQ(FilesIn(segments_path()), 1u);  // the one that could not be allocated is gone
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  ASSERT_OK(SavePart(store_.get(), MakePart(3), chunks));
  ASSERT_OK(store_->RemoveSave(MakePart(3).save));
  faults_.SetHook(nullptr);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {more}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {more}));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, AFullDiskLeavesAFreeSegmentFree) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 3, 4 * kMiB)));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  faults_.FailNext(DiskOp::kAllocate, 1, absl::ResourceExhaustedError("no space left"));
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(2), MakeChunk(5, 100)), absl::StatusCode::kResourceExhausted,
                "full");
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {MakeChunk(5, 100)}));
  EXPECT_EQ(FilesIn(segments_path()), 1u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, ASegmentThatCannotBeBegunIsNotTheEnd) {
  Open();
  faults_.FailNext(DiskOp::kWrite, 1, kBroken);  // the first segment's header
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, 5000)));
  faults_.FailNext(DiskOp::kCreate, 3, kBroken);
  EXPECT_STATUS(SavePart(store_.get(), MakePart(2), MakeChunks(10, 4, 4 * kMiB)), absl::StatusCode::kDataLoss,
                "segment");
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 4, 4 * kMiB)));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), MakeChunks(10, 4, 4 * kMiB)));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, ARecycledSegmentWhoseHeaderFailsIsNotUsed) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, 5000)));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  faults_.FailNext(DiskOp::kWrite, 1, kBroken);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(1, 1, 5000)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(1, 5000).hash()));
  EXPECT_THAT(location.file, ::testing::HasSubstr("segment-0000000000000002.esk"));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, SpaceThatCannotBeGivenBackIsFoundAtTheNextStart) {
  Open();
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), MakeChunk(50, kMiB)));
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 5, kMiB)));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {MakeChunk(50, kMiB)}));
  faults_.FailNext(DiskOp::kPunch, 100, kBroken);
  const uint64_t before = SegmentDiskBytes();
  ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(removed.disk_bytes_freed, 0u);  // the truth, and not what should have been
  EXPECT_EQ(SegmentDiskBytes(), before);
  faults_.FailNext(DiskOp::kPunch, 0, absl::OkStatus());
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {MakeChunk(50, kMiB)}));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
}

TEST_F(StoreFaultTest, CorruptRecordIsDataLossWithFileAndOffset) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(chunks[1].hash()));
  FlipByte(location.file, location.offset + PayloadOffset(100'000) + 77'777);
  const ChunkReadOr read = ReadRecord(store_.get(), chunks[1].hash());
  EXPECT_STATUS(read, absl::StatusCode::kDataLoss, location.file);
  EXPECT_STATUS(read, absl::StatusCode::kDataLoss, StrCat("at ", location.offset));
  EXPECT_OK(ReadRecord(store_.get(), chunks[0].hash()));
  EXPECT_OK(ReadRecord(store_.get(), chunks[2].hash()));
  // A byte of the header, too.
  FlipByte(location.file, location.offset + 20);
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[1].hash()), absl::StatusCode::kDataLoss, location.file);
}

// Saving the same content again must not rest on the damaged record: it heals what named it before, too.
TEST_F(StoreFaultTest, DamagedChunkIsTakenAnewAndHealsItsOtherParts) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation damaged, store_->Locate(chunks[1].hash()));
  FlipByte(damaged.file, damaged.offset + PayloadOffset(100'000) + 5);
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[1].hash()), absl::StatusCode::kDataLoss, damaged.file);

  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(MakePart(2), HashesOf(chunks)));
  EXPECT_EQ(missing, std::vector<bool>({false, true, false}));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation healed, store_->Locate(chunks[1].hash()));
  EXPECT_NE(healed.offset, damaged.offset);
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), chunks));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 3u);

  // Both parts refer to the new record: it stays until both are gone.
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), chunks));
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), chunks));
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, APartIsNotSealedOverAChunkThatWasFoundDamagedSinceItsOffer) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(MakePart(2), HashesOf(chunks)));
  EXPECT_EQ(missing, std::vector<bool>(3, false));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation damaged, store_->Locate(chunks[1].hash()));
  FlipByte(damaged.file, damaged.offset + PayloadOffset(100'000) + 5);
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[1].hash()), absl::StatusCode::kDataLoss, damaged.file);
  ASSERT_OK_AND_ASSIGN(SealResult sealed, SealChunks(store_.get(), MakePart(2), chunks));
  EXPECT_EQ(sealed.missing, std::vector<Hash128>{chunks[1].hash()});
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunks[1]));
  ASSERT_OK_AND_ASSIGN(sealed, SealChunks(store_.get(), MakePart(2), chunks));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_EQ(sealed.entry.new_stored_bytes(), 0u);  // it was held before, if badly
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreFaultTest, NewRecordOfADamagedChunkIsForgottenWithItsSave) {
  Open();
  const TestChunk chunk = MakeChunk(1, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation damaged, store_->Locate(chunk.hash()));
  FlipByte(damaged.file, damaged.offset + PayloadOffset(100'000) + 5);
  EXPECT_STATUS(ReadRecord(store_.get(), chunk.hash()), absl::StatusCode::kDataLoss, damaged.file);
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunk));
  store_->EndSave(MakePart(2).save);
  ASSERT_OK_AND_ASSIGN(const ChunkLocation still, store_->Locate(chunk.hash()));
  EXPECT_EQ(still.offset, damaged.offset);
  EXPECT_OK(store_->CheckConsistency());
  // The damaged one's last part goes while the new record waits for its seal.
  ASSERT_OK(PutChunk(store_.get(), MakePart(3), chunk));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(SavePart(store_.get(), MakePart(3), {chunk}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(3), {chunk}));
  EXPECT_OK(store_->CheckConsistency());
}

// A record of an earlier use of the segment at the right place, whole, of the right chunk: not what the index
// means.
TEST_F(StoreFaultTest, StaleGenerationIsRefused) {
  Open();
  const TestChunk chunk = MakeChunk(1, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation before, store_->Locate(chunk.hash()));
  std::string stale(before.record_bytes, '\0');
  std::fstream file(before.file, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(before.offset))
      .read(stale.data(), static_cast<std::streamsize>(stale.size()));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {chunk}));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation after, store_->Locate(chunk.hash()));
  ASSERT_EQ(after.file, before.file);
  ASSERT_EQ(after.offset, before.offset);
  file.seekp(static_cast<std::streamoff>(after.offset))
      .write(stale.data(), static_cast<std::streamsize>(stale.size()));
  file.close();
  EXPECT_STATUS(ReadRecord(store_.get(), chunk.hash()), absl::StatusCode::kDataLoss, "generation");
}

TEST_F(StoreFaultTest, AReadErrorNamesFileAndOffset) {
  Open();
  const TestChunk chunk = MakeChunk(1, 5000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  faults_.FailNext(DiskOp::kRead, 1, kBroken);
  EXPECT_STATUS(ReadRecord(store_.get(), chunk.hash()), absl::StatusCode::kDataLoss,
                "segment-0000000000000001.esk at 4096");
  EXPECT_OK(ReadRecord(store_.get(), chunk.hash()));
}

TEST_F(StoreFaultTest, ATruncatedSegmentIsDataLoss) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation last, store_->Locate(chunks[1].hash()));
  ASSERT_EQ(::truncate(last.file.c_str(), static_cast<off_t>(last.offset)), 0);
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[1].hash()), absl::StatusCode::kDataLoss, last.file);
  EXPECT_OK(ReadRecord(store_.get(), chunks[0].hash()));
}

// --- sharing -------------------------------------------------------------------------------------

TEST_F(StoreFaultTest, ChunksAreDurableBeforeTheirPartShows) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 6, 4 * kMiB);  // two segments
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunk));
  std::set<std::string> synced;
  faults_.SetHook([&](const DiskEvent& event) {
    if (event.op != DiskOp::kSync) return absl::OkStatus();
    synced.insert(event.file);
    EXPECT_FALSE(store_->GetPart(MakePart(1).save, 0).ok());
    EXPECT_FALSE(store_->Locate(chunks[0].hash()).ok());
    return absl::OkStatus();
  });
  ASSERT_OK(SealChunks(store_.get(), MakePart(1), chunks));
  EXPECT_EQ(synced, (std::set<std::string>{SegmentFileName(1), SegmentFileName(2)}));
  EXPECT_OK(store_->GetPart(MakePart(1).save, 0));
  // What is durable needs no other sync.
  synced.clear();
  ASSERT_OK(SavePart(store_.get(), MakePart(2), chunks));
  EXPECT_TRUE(synced.empty());
  faults_.SetHook(nullptr);
}

TEST_F(StoreFaultTest, ConcurrentSealsShareSyncs) {
  Open();
  constexpr uint32_t kSeals = 64;
  std::vector<std::vector<TestChunk>> parts;
  for (uint32_t rank = 0; rank < kSeals; ++rank) {
    parts.push_back(MakeChunks(rank * 10, 2, 10'000));
    for (const TestChunk& chunk : parts.back()) ASSERT_OK(PutChunk(store_.get(), MakePart(1, rank), chunk));
  }
  // The first sync waits until all seals have been asked for: they must share the next.
  std::promise<void> all_asked;
  std::shared_future<void> go(all_asked.get_future());
  const uint64_t before = faults_.count(DiskOp::kSync);
  faults_.SetHook([go](const DiskEvent& event) {
    if (event.op == DiskOp::kSync) go.wait();
    return absl::OkStatus();
  });
  std::vector<std::future<absl::StatusOr<SealResult>>> seals;
  std::atomic<uint32_t> asked = 0;
  for (uint32_t rank = 0; rank < kSeals; ++rank) {
    seals.push_back(std::async(std::launch::async, [&, rank] {
      ++asked;
      return SealChunks(store_.get(), MakePart(1, rank), parts[rank]);
    }));
  }
  while (asked < kSeals || faults_.count(DiskOp::kSync) == before) std::this_thread::yield();
  all_asked.set_value();
  for (auto& seal : seals) {
    absl::StatusOr<SealResult> sealed = seal.get();
    ASSERT_OK(sealed);
    EXPECT_TRUE(sealed->missing.empty());
  }
  EXPECT_LE(faults_.count(DiskOp::kSync) - before, 8u);
  for (uint32_t rank = 0; rank < kSeals; ++rank)
    EXPECT_OK(CheckPart(store_.get(), MakePart(1, rank), parts[rank]));
  EXPECT_OK(store_->CheckConsistency());
}

}  // namespace
}  // namespace esker::testing
