// What a start makes of what it finds.
#include "server/store/recovery.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "format/segment_header.h"
#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

class RecoveryTest : public StoreTest {
 protected:
  std::string SegmentPath(uint64_t id) const { return segments_path() + "/" + SegmentFileName(id); }
  std::vector<std::string> FailedSegments() {
    absl::StatusOr<StoreStats> stats = store_->Stats();
    EXPECT_OK(stats);
    return stats->failed_segments;
  }
  void Overwrite(uint64_t segment_id, uint64_t offset, const std::string& bytes) {
    std::fstream file(SegmentPath(segment_id), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file << bytes;
    ASSERT_TRUE(file.good());
  }
};

TEST_F(RecoveryTest, UnreferencedSpaceIsReclaimed) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 2, kMiB)));
  // More than a segment of unsealed data, in the middle and behind.
  for (const TestChunk& chunk : MakeChunks(100, 6, 4 * kMiB))
    ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunk));
  ASSERT_OK(SavePart(store_.get(), MakePart(3), MakeChunks(10, 2, kMiB)));
  for (const TestChunk& chunk : MakeChunks(200, 6, 4 * kMiB))
    ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunk));
  Reopen();
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.live_bytes, 4 * RecordBytes(kMiB));
  EXPECT_OK(store_->CheckConsistency());
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), MakeChunks(1, 2, kMiB)));
  EXPECT_OK(CheckPart(store_.get(), MakePart(3), MakeChunks(10, 2, kMiB)));
  // Of the disk remain the live records, empty segments, and the rest of the one that goes on.
  const uint64_t reusable = stats.free_segments * 16 * kMiB + 16 * kMiB;
  EXPECT_LE(SegmentDiskBytes(), stats.live_bytes + reusable);
}

TEST_F(RecoveryTest, ASecondStartHasNothingToDo) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 12, kMiB)));
  for (const TestChunk& chunk : MakeChunks(100, 3, kMiB))
    ASSERT_OK(PutChunk(store_.get(), MakePart(2), chunk));
  Reopen();
  const uint64_t punched = faults_.count(DiskOp::kPunch);
  const uint64_t bytes = SegmentDiskBytes();
  Reopen();
  EXPECT_EQ(faults_.count(DiskOp::kPunch), punched);
  EXPECT_EQ(SegmentDiskBytes(), bytes);
}

TEST_F(RecoveryTest, TheLongestTailGoesOn) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  Reopen();
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 1, kMiB)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(10, kMiB).hash()));
  EXPECT_EQ(location.file, SegmentPath(1));
  EXPECT_EQ(location.offset, 4096 + RecordBytes(kMiB));
  EXPECT_EQ(FilesIn(segments_path()), 1u);
}

TEST_F(RecoveryTest, ATailWithoutDiskUnderItDoesNot) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  Close();
  const int fd = ::open(SegmentPath(1).c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * kMiB, 8 * kMiB), 0);
  ::close(fd);
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 1, kMiB)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(10, kMiB).hash()));
  EXPECT_EQ(location.file, SegmentPath(2));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(RecoveryTest, AMissingSegmentFileCostsItsChunksAndNothingElse) {
  Open();
  const std::vector<TestChunk> lost = MakeChunks(1, 3, 4 * kMiB);
  const std::vector<TestChunk> kept = MakeChunks(10, 2, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), lost));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(20, 3, 4 * kMiB)));
  ASSERT_OK(SavePart(store_.get(), MakePart(3), kept));
  Close();
  std::filesystem::remove(SegmentPath(1));
  Open();
  EXPECT_STATUS(ReadRecord(store_.get(), lost[0].hash()), absl::StatusCode::kDataLoss, SegmentPath(1));
  ASSERT_EQ(FailedSegments().size(), 1u);
  EXPECT_THAT(FailedSegments()[0], ::testing::HasSubstr("gone"));
  EXPECT_OK(CheckPart(store_.get(), MakePart(3), kept));
  EXPECT_OK(store_->CheckConsistency());
  // New data; never under the lost one's name.
  ASSERT_OK(SavePart(store_.get(), MakePart(4), MakeChunks(30, 8, 4 * kMiB)));
  EXPECT_FALSE(std::filesystem::exists(SegmentPath(1)));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_TRUE(FailedSegments().empty());
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(RecoveryTest, AnotherStoresSegmentIsNeitherReadNorRemoved) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  Close();
  std::string block(kFirstRecordOffset, '\0');
  EncodeSegmentHeader({.store_id = {9}, .segment_id = 1, .generation = 1, .segment_bytes = 16 * kMiB},
                      std::as_writable_bytes(std::span(block)));
  Overwrite(1, 0, block);
  std::filesystem::copy_file(SegmentPath(1), SegmentPath(77));
  Open();
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[0].hash()), absl::StatusCode::kDataLoss, SegmentPath(1));
  EXPECT_EQ(FailedSegments().size(), 1u);
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_TRUE(FailedSegments().empty());
  EXPECT_TRUE(std::filesystem::exists(SegmentPath(1)));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), chunks));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(chunks[0].hash()));
  EXPECT_EQ(location.file, SegmentPath(78));
  Reopen();
  EXPECT_TRUE(std::filesystem::exists(SegmentPath(1)));
  EXPECT_TRUE(std::filesystem::exists(SegmentPath(77)));
}

TEST_F(RecoveryTest, ADamagedHeaderLeavesTheRecordsReadable) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  Close();
  Overwrite(1, 30, "damage");
  Open();
  EXPECT_EQ(FailedSegments().size(), 1u);
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 1, kMiB)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(10, kMiB).hash()));
  EXPECT_EQ(location.file, SegmentPath(2));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_FALSE(std::filesystem::exists(SegmentPath(1)));
}

TEST_F(RecoveryTest, ACutSegmentKeepsWhatIsLeftOfIt) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, kMiB);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  Close();
  std::filesystem::resize_file(SegmentPath(1), 4096 + RecordBytes(kMiB));
  Open();
  ASSERT_EQ(FailedSegments().size(), 1u);
  EXPECT_THAT(FailedSegments()[0], ::testing::HasSubstr("cut short"));
  EXPECT_OK(ReadRecord(store_.get(), chunks[0].hash()));
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[1].hash()), absl::StatusCode::kDataLoss, SegmentPath(1));
}

TEST_F(RecoveryTest, FilesThatTheIndexDoesNotKnow) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  Close();
  std::ofstream(segments_path() + "/notes.txt") << "somebody's notes";
  std::ofstream(segments_path() + "/segment-12.esk") << "not a segment's name";
  std::filesystem::create_directory(segments_path() + "/lost+found");
  std::ofstream(SegmentPath(5)) << "";  // a crash right after its creation
  std::ofstream(SegmentPath(6)) << std::string(8192, '\0');
  std::ofstream(SegmentPath(7)) << std::string(8192, 'x');  // nobody knows what it is
  Open();
  EXPECT_TRUE(std::filesystem::exists(segments_path() + "/notes.txt"));
  EXPECT_TRUE(std::filesystem::exists(segments_path() + "/segment-12.esk"));
  EXPECT_FALSE(std::filesystem::exists(SegmentPath(5)));
  EXPECT_FALSE(std::filesystem::exists(SegmentPath(6)));
  EXPECT_TRUE(std::filesystem::exists(SegmentPath(7)));
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(20, 8, 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(MakeChunk(27, 4 * kMiB).hash()));
  EXPECT_EQ(location.file, SegmentPath(9));
}

TEST_F(RecoveryTest, AnEmptySegmentOfOursIsKeptForNewData) {
  Open();
  for (const TestChunk& chunk : MakeChunks(1, 3, 4 * kMiB))
    ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunk));
  Reopen();
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.segments, 1u);
  EXPECT_EQ(stats.free_segments, 1u);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(1, 1, kMiB)));
  EXPECT_EQ(FilesIn(segments_path()), 1u);
  options_.recycle_bytes = 0;
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  Reopen();
  EXPECT_EQ(FilesIn(segments_path()), 0u);
}

TEST_F(RecoveryTest, TheStockIsKept) {
  Open();
  // More than the stock of a new store.
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 12 * 3, 4 * kMiB)));
  store_->EndSave(MakePart(1).save);
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK_AND_ASSIGN(const StoreStats before, store_->Stats());
  EXPECT_EQ(before.free_segments, 12u);
  Reopen();
  ASSERT_OK_AND_ASSIGN(const StoreStats after, store_->Stats());
  EXPECT_EQ(after.free_segments, 12u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(RecoveryTest, SegmentsOfAnotherSizeStayInUse) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  options_.segment_bytes = 32 * kMiB;
  Reopen();
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 5, 4 * kMiB)));
  EXPECT_EQ(std::filesystem::file_size(SegmentPath(1)), 16 * kMiB);
  EXPECT_EQ(std::filesystem::file_size(SegmentPath(2)), 32 * kMiB);
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), MakeChunks(1, 1, kMiB)));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), MakeChunks(10, 5, 4 * kMiB)));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(RecoveryTest, AnotherStoresIndexIsRefused) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 1, 100)));
  Close();
  std::ofstream(options_.directory + "/FORMAT") << "esker-store 1\nid 01234567-89ab-4def-8123-456789abcdef\n";
  EXPECT_STATUS(TryOpen(), absl::StatusCode::kDataLoss, "01234567-89ab-4def-8123-456789abcdef");
}

TEST_F(RecoveryTest, NewerFormatAndLockAreSaidByOpen) {
  Open();
  EXPECT_STATUS(Store::Open(options_), absl::StatusCode::kFailedPrecondition,
                "in use by the process with pid");
  Close();
  std::ofstream(options_.directory + "/FORMAT") << "esker-store 2\n";
  EXPECT_STATUS(Store::Open(options_), absl::StatusCode::kFailedPrecondition, "format 2");
}

}  // namespace
}  // namespace esker::testing
