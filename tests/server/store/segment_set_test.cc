#include "server/store/segment_set.h"

#include <filesystem>

#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::DiskBytesOf;
using esker::testing::DiskOp;
using esker::testing::FilesIn;
using esker::testing::kMiB;
using State = SegmentInfo::State;

constexpr uint64_t kRecord = 4 * kMiB;

class SegmentSetTest : public ComponentsTest {
 protected:
  RecordPlace Allocate(uint64_t bytes = kRecord) {
    absl::StatusOr<WritePlace> place = segments_->Allocate(bytes);
    EXPECT_OK(place);
    return place->place;
  }
  void Release(const RecordPlace& place, bool was_live = false, uint64_t bytes = kRecord) {
    const ReleasedPlace released{
        .segment_id = place.segment_id, .extent = {place.offset, bytes}, .was_live = was_live};
    segments_->Release(std::span(&released, 1));
  }
  uint64_t DiskBytes() const { return DiskBytesOf(directory_ / "segments"); }
};

TEST_F(SegmentSetTest, PlacesFollowEachOtherAndSegmentsToo) {
  EXPECT_EQ(Allocate(4096), (RecordPlace{1, 1, 4096}));
  EXPECT_EQ(Allocate(8192), (RecordPlace{1, 1, 8192}));
  EXPECT_EQ(Allocate(kSegmentBytes - 16384), (RecordPlace{1, 1, 16384}));  // just fits
  EXPECT_EQ(Allocate(4096), (RecordPlace{2, 1, 4096}));
  EXPECT_EQ(InfoOf(1).state, State::kClosed);
  EXPECT_EQ(InfoOf(2).state, State::kActive);
  EXPECT_EQ(segments_->reusable_bytes(), kSegmentBytes - 8192);
}

TEST_F(SegmentSetTest, ANewSegmentIsAllocatedAndItsNameDurableBeforeItTakesRecords) {
  std::vector<DiskOp> order;
  faults_.SetHook([&](const esker::testing::DiskEvent& event) {
    order.push_back(event.op);
    return absl::OkStatus();
  });
  Allocate();
  EXPECT_EQ(order, (std::vector<DiskOp>{DiskOp::kCreate, DiskOp::kAllocate, DiskOp::kWrite,
                                        DiskOp::kSyncDirectory}));
  EXPECT_GE(DiskBytes(), kSegmentBytes);
}

TEST_F(SegmentSetTest, OneSyncCoversAllWritesBeforeIt) {
  const RecordPlace place = Allocate();
  Allocate();
  const uint64_t first = segments_->WriteFinished(place.segment_id);
  const uint64_t second = segments_->WriteFinished(place.segment_id);
  ASSERT_OK(segments_->SyncUpTo(place.segment_id, first));
  ASSERT_OK(segments_->SyncUpTo(place.segment_id, second));
  EXPECT_EQ(faults_.count(DiskOp::kSync), 1u);
  ASSERT_OK(segments_->SyncUpTo(place.segment_id, segments_->WriteFinished(place.segment_id)));
  EXPECT_EQ(faults_.count(DiskOp::kSync), 2u);
}

TEST_F(SegmentSetTest, AFailedSyncIsNeverTriedAgain) {
  const RecordPlace place = Allocate();
  const uint64_t durable = segments_->WriteFinished(1);
  ASSERT_OK(segments_->SyncUpTo(1, durable));
  const uint64_t lost = segments_->WriteFinished(1);
  faults_.FailNext(DiskOp::kSync, 1, absl::DataLossError("broken"));
  EXPECT_STATUS(segments_->SyncUpTo(1, lost), absl::StatusCode::kDataLoss, "broken");
  EXPECT_STATUS(segments_->SyncUpTo(1, lost), absl::StatusCode::kDataLoss, "broken");
  EXPECT_OK(segments_->SyncUpTo(1, durable));
  EXPECT_EQ(faults_.count(DiskOp::kSync), 2u);
  EXPECT_EQ(segments_->synced_writes(1), durable);
  EXPECT_EQ(InfoOf(1).state, State::kFailed);
  ASSERT_EQ(failures_.size(), 1u);
  EXPECT_EQ(failures_[0].first, 1u);
  EXPECT_THAT(*failures_[0].second, ::testing::HasSubstr("broken"));
  EXPECT_EQ(Allocate().segment_id, 2u);
  // Its dead space goes back; when all is dead, all of it.
  Release(place);
  EXPECT_GE(segments_->Reclaim().disk_bytes_freed, kSegmentBytes);
  EXPECT_EQ(failures_.back(), (std::pair<uint64_t, std::optional<std::string>>{1, std::nullopt}));
  EXPECT_EQ(FilesIn(directory_ / "segments"), 1u);
}

TEST_F(SegmentSetTest, EmptySegmentsAreRecycledUpToTheLimit) {
  Restart(kSegmentBytes + kMiB);
  std::vector<RecordPlace> places;
  for (int i = 0; i < 9; ++i) places.push_back(Allocate());  // three segments
  for (const RecordPlace& place : places) Release(place);
  const ReclaimReport report = segments_->Reclaim();
  EXPECT_EQ(report.segments_recycled, 1u);
  EXPECT_GE(report.recycled_bytes, kSegmentBytes - kRecord);
  EXPECT_EQ(FilesIn(directory_ / "segments"), 1u);
  const uint64_t disk_bytes = DiskBytes();
  EXPECT_EQ(report.recycled_bytes, disk_bytes);
  EXPECT_EQ(segments_->reusable_bytes(), disk_bytes);
  // It comes back with a new generation, whole again.
  const RecordPlace again = Allocate();
  EXPECT_EQ(again.segment_id, segments_->List()[0].id);
  EXPECT_EQ(again.generation, 2u);
  EXPECT_GE(DiskBytes(), kSegmentBytes);
}

TEST_F(SegmentSetTest, TheActiveSegmentIsRecycledToo) {
  Release(Allocate());
  EXPECT_EQ(segments_->Reclaim().segments_recycled, 1u);
  EXPECT_EQ(Allocate(), (RecordPlace{1, 2, 4096}));
}

TEST_F(SegmentSetTest, HolesArePunchedWhereOtherRecordsLive) {
  std::vector<RecordPlace> places;
  for (int i = 0; i < 3; ++i) places.push_back(Allocate());
  const uint64_t before = DiskBytes();
  Release(places[0]);
  Release(places[1]);  // a neighbour: one hole
  const ReclaimReport report = segments_->Reclaim();
  EXPECT_EQ(faults_.count(DiskOp::kPunch), 1u);
  EXPECT_EQ(report.disk_bytes_freed, before - DiskBytes());
  EXPECT_GE(report.disk_bytes_freed, 2 * kRecord - 65536);
  EXPECT_EQ(segments_->Reclaim().disk_bytes_freed, 0u);
  EXPECT_EQ(faults_.count(DiskOp::kPunch), 1u);
}

TEST_F(SegmentSetTest, TheTailOfAClosedSegmentGoesBack) {
  for (int i = 0; i < 4; ++i) Allocate();  // the fourth does not fit
  segments_->Reclaim();
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<DiskFile> file, segments_->Open(1));
  ASSERT_OK_AND_ASSIGN(const uint64_t bytes, file->AllocatedBytes());
  EXPECT_LE(bytes, 4096 + 3 * kRecord + 65536);
}

TEST_F(SegmentSetTest, HeldReclaimLosesNothing) {
  const RecordPlace place = Allocate();
  Allocate();
  Release(place);
  segments_->HoldReclaim(true);
  EXPECT_EQ(segments_->Reclaim().disk_bytes_freed, 0u);
  EXPECT_EQ(faults_.count(DiskOp::kPunch), 0u);
  segments_->HoldReclaim(false);
  EXPECT_GT(segments_->Reclaim().disk_bytes_freed, 0u);
}

TEST_F(SegmentSetTest, AFileSystemWithoutHolesIsAskedOnce) {
  std::vector<RecordPlace> places;
  for (int i = 0; i < 3; ++i) places.push_back(Allocate());
  faults_.FailNext(DiskOp::kPunch, 100, absl::UnimplementedError("no holes here"));
  Release(places[0]);
  segments_->Reclaim();
  Release(places[1]);
  segments_->Reclaim();
  EXPECT_EQ(faults_.count(DiskOp::kPunch), 1u);
  EXPECT_FALSE(segments_->can_punch());
  Release(places[2]);  // the segment as a whole is recycled all the same
  EXPECT_EQ(segments_->Reclaim().segments_recycled, 1u);
}

TEST_F(SegmentSetTest, NamesThatAreTakenAreLeftAlone) {
  ASSERT_OK(disk_->Open(SegmentFileName(1), Disk::OpenMode::kCreateNew));
  EXPECT_EQ(Allocate().segment_id, 2u);
  segments_->AvoidId(7);
  Allocate(kSegmentBytes - 4096);
  EXPECT_EQ(Allocate().segment_id, 9u);
}

TEST_F(SegmentSetTest, AFullDiskIsSaidWithFigures) {
  faults_.SetAvailable(1234567);
  faults_.FailNext(DiskOp::kAllocate, 1, absl::ResourceExhaustedError("ENOSPC"));
  EXPECT_STATUS(segments_->Allocate(kRecord), absl::StatusCode::kResourceExhausted, "1234567");
  EXPECT_EQ(FilesIn(directory_ / "segments"), 0u);
  Allocate();
}

TEST_F(SegmentSetTest, ALostSegmentIsNotRead) {
  segments_->Adopt({.id = 5,
                    .segment_bytes = kSegmentBytes,
                    .state = State::kFailed,
                    .used_bytes = kRecord,
                    .live_bytes = kRecord,
                    .fault = "the file is gone",
                    .unreadable = true});
  EXPECT_STATUS(segments_->Open(5), absl::StatusCode::kDataLoss, segments_->FilePath(5));
  EXPECT_STATUS(segments_->Open(6), absl::StatusCode::kDataLoss, segments_->FilePath(6));
  // When its last record dies it is forgotten; a file of that name is not touched.
  ASSERT_OK(disk_->Open(SegmentFileName(5), Disk::OpenMode::kCreateNew));
  Release({5, 1, 4096}, true);
  segments_->Reclaim();
  EXPECT_TRUE(segments_->List().empty());
  EXPECT_EQ(FilesIn(directory_ / "segments"), 1u);
}

}  // namespace
}  // namespace esker::store
