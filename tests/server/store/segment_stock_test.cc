// The stock of written segments: how much, when not, and what becomes of it when something fails.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "server/store/aligned_block.h"
#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::DiskBytesOf;
using esker::testing::DiskEvent;
using esker::testing::DiskOp;
using esker::testing::FilesIn;
using esker::testing::kMiB;
using State = SegmentInfo::State;

constexpr uint64_t kRecordBytes = 4 * kMiB;
constexpr uint64_t kRecordsInSegment = 3;

class SegmentStockTest : public ComponentsTest {
 protected:
  void FillStock() {
    absl::StatusOr<bool> more = true;
    while (more.ok() && *more) more = segments_->TendStock();
    ASSERT_OK(more);
  }
  RecordPlace Allocate(uint64_t bytes = kRecordBytes) {
    absl::StatusOr<WritePlace> place = segments_->Allocate(bytes);
    EXPECT_OK(place);
    return place.ok() ? place->place : RecordPlace{};
  }
  std::vector<RecordPlace> AllocateSegments(uint64_t count) {
    std::vector<RecordPlace> places;
    for (uint64_t i = 0; i < count * kRecordsInSegment; ++i) places.push_back(Allocate());
    return places;
  }
  void Release(const std::vector<RecordPlace>& places) {
    for (const RecordPlace& place : places) {
      const ReleasedPlace released{.segment_id = place.segment_id, .extent = {place.offset, kRecordBytes}};
      segments_->Release(std::span(&released, 1));
    }
  }
  uint64_t FreeSegments() const {
    uint64_t count = 0;
    for (const SegmentInfo& info : segments_->List()) count += info.state == State::kFree ? 1 : 0;
    return count;
  }
  // A save that begins so many segments, and is removed.
  void SaveAndRemove(uint64_t segments) {
    Release(AllocateSegments(segments));
    segments_->NoteSavesEnded();
    segments_->Reclaim();
  }
};

TEST_F(SegmentStockTest, SegmentsAreWrittenBeforeTheyAreUsed) {
  Restart(2 * kSegmentBytes);
  std::vector<uint64_t> written(3, kFirstRecordOffset);
  faults_.SetHook([&](const DiskEvent& event) {
    if (event.op != DiskOp::kWrite || event.offset == 0) return absl::OkStatus();
    // Every block from the first record on.
    uint64_t& to = written.at(event.file == SegmentFileName(1) ? 1 : 2);
    EXPECT_EQ(event.offset, to);
    to = event.offset / kMiB * kMiB + kMiB;
    return absl::OkStatus();
  });
  FillStock();
  EXPECT_EQ(written[1], kSegmentBytes);
  EXPECT_EQ(written[2], kSegmentBytes);
  EXPECT_EQ(FreeSegments(), 2u);
  EXPECT_EQ(segments_->reusable_bytes(), 2 * kSegmentBytes);
  EXPECT_EQ(faults_.count(DiskOp::kSync), 2u);
  faults_.SetHook(nullptr);
  // They are taken before any new one is made.
  const uint64_t made = faults_.count(DiskOp::kCreate);
  AllocateSegments(2);
  EXPECT_EQ(faults_.count(DiskOp::kCreate), made);
  Allocate();
  EXPECT_EQ(faults_.count(DiskOp::kCreate), made + 1);
}

TEST_F(SegmentStockTest, EmptiedSegmentsAreStock) {
  Restart(3 * kSegmentBytes);
  const std::vector<RecordPlace> places = AllocateSegments(2);
  Release(places);
  segments_->Reclaim();
  EXPECT_EQ(FreeSegments(), 2u);
  FillStock();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 3u);
  EXPECT_LE(segments_->reusable_bytes(), 3 * kSegmentBytes);
}

TEST_F(SegmentStockTest, TheStockIsWhatTheLastSavesTook) {
  Restart(100 * kSegmentBytes);
  SaveAndRemove(14);
  FillStock();
  EXPECT_EQ(FreeSegments(), 15u);  // one more, since the next save may begin in the middle of one
  // A small save does not shrink it, eight do.
  SaveAndRemove(2);
  FillStock();
  EXPECT_EQ(FreeSegments(), 15u);
  for (int i = 0; i < 7; ++i) SaveAndRemove(2);
  FillStock();
  EXPECT_EQ(FreeSegments(), 3u);
  EXPECT_EQ(FilesIn(directory_ / "segments"), 3u);
}

TEST_F(SegmentStockTest, ASaveMayTakeAHalfWrittenSegment) {
  Restart(kSegmentBytes);
  ASSERT_OK(segments_->TendStock());  // makes it
  EXPECT_EQ(segments_->reusable_bytes(), kSegmentBytes);
  ASSERT_OK(segments_->TendStock());  // writes a piece
  absl::StatusOr<WritePlace> place = segments_->Allocate(kRecordBytes);
  ASSERT_OK(place);
  EXPECT_EQ(place->place, (RecordPlace{1, 2, kFirstRecordOffset}));
  const AlignedBlock block;
  std::memset(block.bytes().data(), 0x5a, kBlockBytes);
  const uint64_t offset = 2 * kMiB;  // where the stock's next pieces would go
  ASSERT_OK(place->file->Write(offset, block.bytes()));
  FillStock();
  const AlignedBlock read;
  ASSERT_OK(place->file->Read(offset, read.bytes()));
  EXPECT_EQ(std::memcmp(read.bytes().data(), block.bytes().data(), kBlockBytes), 0);
}

TEST_F(SegmentStockTest, TheOneWrittenFurthestIsTakenFirst) {
  Restart(2 * kSegmentBytes);
  const std::vector<RecordPlace> places = AllocateSegments(1);
  ASSERT_OK(segments_->TendStock());
  ASSERT_OK(segments_->TendStock());
  ASSERT_EQ(InfoOf(2).state, State::kFree);
  Release(places);
  segments_->Reclaim();
  EXPECT_EQ(Allocate().segment_id, 1u);
  EXPECT_EQ(InfoOf(2).state, State::kFree);
}

TEST_F(SegmentStockTest, HolesOfAFreeSegmentAreWritten) {
  Restart(kSegmentBytes);
  const std::vector<RecordPlace> places = AllocateSegments(1);
  Release({places[0], places[1]});
  segments_->Reclaim();  // holes
  Release({places[2]});
  segments_->Reclaim();
  ASSERT_EQ(FreeSegments(), 1u);
  ASSERT_LE(DiskBytesOf(directory_ / "segments"), kSegmentBytes / 2);
  FillStock();
  EXPECT_GE(DiskBytesOf(directory_ / "segments"), kSegmentBytes);
  EXPECT_EQ(segments_->reusable_bytes(), kSegmentBytes);
  EXPECT_EQ(faults_.count(DiskOp::kWrite), 1 + kSegmentBytes / kMiB);
}

TEST_F(SegmentStockTest, TheFileSystemKeepsItsFreeSpace) {
  Restart(4 * kSegmentBytes, 100 * kMiB);
  faults_.SetAvailable(100 * kMiB + kSegmentBytes - 1);
  FillStock();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
  faults_.SetAvailable(100 * kMiB + kSegmentBytes);
  ASSERT_OK_AND_ASSIGN(const bool more, segments_->TendStock());
  EXPECT_TRUE(more);
  EXPECT_EQ(FreeSegments(), 1u);
  // Where it lacks, emptied ones are not kept, and what is in stock goes back.
  Release(AllocateSegments(1));
  faults_.SetAvailable(100 * kMiB - 1);
  segments_->Reclaim();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
  faults_.SetAvailable(1024 * kMiB);
  FillStock();
  EXPECT_EQ(FreeSegments(), 4u);
  faults_.SetAvailable(100 * kMiB - 1);
  FillStock();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
}

TEST_F(SegmentStockTest, NoStockWithoutALimit) {
  Restart(0);
  FillStock();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
}

TEST_F(SegmentStockTest, AFullDiskLeavesNothingBehind) {
  faults_.FailNext(DiskOp::kAllocate, 1, absl::ResourceExhaustedError("ENOSPC"));
  EXPECT_STATUS(segments_->TendStock(), absl::StatusCode::kResourceExhausted, "ENOSPC");
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
  EXPECT_EQ(segments_->reusable_bytes(), 0u);
  Allocate();
}

TEST_F(SegmentStockTest, ASegmentThatCantBeWrittenIsRemoved) {
  Restart(2 * kSegmentBytes);
  ASSERT_OK(segments_->TendStock());
  faults_.FailNext(DiskOp::kWrite, 1, absl::DataLossError("EIO"));
  EXPECT_STATUS(segments_->TendStock(), absl::StatusCode::kDataLoss, "EIO");
  EXPECT_EQ(InfoOf(1).state, State::kFailed);
  EXPECT_EQ(segments_->reusable_bytes(), 0u);
  ASSERT_EQ(failures_.size(), 1u);
  segments_->Reclaim();
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
  FillStock();
  EXPECT_EQ(segments_->reusable_bytes(), 2 * kSegmentBytes);
}

TEST_F(SegmentStockTest, AFailedSyncGivesTheSegmentUp) {
  Restart(kSegmentBytes);
  faults_.FailNext(DiskOp::kSync, 1, absl::DataLossError("EIO"));
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) more = segments_->TendStock();
  EXPECT_STATUS(more, absl::StatusCode::kDataLoss, "EIO");
  EXPECT_EQ(InfoOf(1).state, State::kFailed);
  EXPECT_EQ(Allocate().segment_id, 2u);
}

}  // namespace
}  // namespace esker::store
