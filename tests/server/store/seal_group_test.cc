#include "server/store/seal_group.h"

#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::DiskOp;
using esker::testing::MakeChunk;
using esker::testing::MakeChunks;
using esker::testing::MakePart;
using esker::testing::TestChunk;

class SealGroupTest : public ComponentsTest {
 protected:
  // Seals the requests as one group.
  std::vector<absl::StatusOr<SealResult>> Seal(const std::vector<SealRequest>& requests) {
    std::vector<SealWork> works(requests.size());
    std::vector<SealWork*> pointers;
    for (size_t i = 0; i < requests.size(); ++i) {
      works[i].request = &requests[i];
      pointers.push_back(&works[i]);
    }
    let_go_.clear();
    SealTogether(context_.get(), pointers, &let_go_);
    std::vector<absl::StatusOr<SealResult>> results;
    for (SealWork& work : works) results.push_back(std::move(work.result));
    return results;
  }
  uint64_t RefsOf(const TestChunk& chunk) const {
    const auto entry = index_->GetChunk(chunk.hash());
    EXPECT_OK(entry);
    return entry->has_value() ? (*entry)->refs : 0;
  }

  std::vector<LetGo> let_go_;
};

TEST_F(SealGroupTest, AGroupSyncsEachSegmentOnceAndWritesOnce) {
  std::vector<SealRequest> requests;
  for (uint32_t rank = 0; rank < 20; ++rank) {
    const std::vector<TestChunk> chunks = MakeChunks(rank * 10, 3, 400'000);  // 24 MB: two segments
    for (const TestChunk& chunk : chunks) WriteChunk(MakePart(1, rank), chunk);
    requests.push_back(MakeRequest(MakePart(1, rank), chunks));
  }
  for (const auto& result : Seal(requests)) {
    ASSERT_OK(result);
    EXPECT_TRUE(result->missing.empty());
    EXPECT_EQ(result->entry.new_stored_bytes(), 1'200'000u);
  }
  EXPECT_EQ(faults_.count(DiskOp::kSync), 2u);
  EXPECT_EQ(counts_.parts, 20u);
  EXPECT_EQ(counts_.chunks, 60u);
  EXPECT_EQ(counts_.layouts, 1u);
  EXPECT_TRUE(sessions_->OpenSaves().empty());
}

TEST_F(SealGroupTest, TheFirstPartOfAGroupMadeASharedChunkDurable) {
  const TestChunk shared = MakeChunk(1, 5000);
  const TestChunk own = MakeChunk(2, 700);
  WriteChunk(MakePart(1, 0), shared);
  WriteChunk(MakePart(1, 1), own);
  const auto results =
      Seal({MakeRequest(MakePart(1, 0), {shared}), MakeRequest(MakePart(1, 1), {own, shared, own})});
  EXPECT_EQ(results[0]->entry.new_stored_bytes(), 5000u);
  EXPECT_EQ(results[1]->entry.new_stored_bytes(), 700u);
  EXPECT_EQ(results[1]->entry.stored_bytes(), 5700u);
  EXPECT_EQ(RefsOf(shared), 2u);
  EXPECT_EQ(RefsOf(own), 1u);  // a part is one reference, however often it names the chunk
}

TEST_F(SealGroupTest, PartsThatCannotBeSealedDoNotHoldUpTheOthers) {
  const std::vector<TestChunk> chunks = MakeChunks(1, 4, 5000);
  for (const TestChunk& chunk : chunks) WriteChunk(MakePart(1), chunk);
  Save(MakePart(0), {MakeChunk(99, 10)});
  SealRequest wrong_length = MakeRequest(MakePart(1, 2), {chunks[2]});
  wrong_length.chunk_raw_bytes[0] = 4999;
  const auto results =
      Seal({MakeRequest(MakePart(1, 0), {chunks[0]}),
            MakeRequest(MakePart(1, 1), {chunks[1], MakeChunk(50, 10)}), wrong_length,
            MakeRequest(MakePart(0), {chunks[3]}), MakeRequest(MakePart(1, 4), {chunks[0], chunks[3]})});
  EXPECT_TRUE(results[0]->missing.empty());
  EXPECT_EQ(results[1]->missing, std::vector{MakeChunk(50, 10).hash()});
  EXPECT_STATUS(results[2], absl::StatusCode::kInvalidArgument, "4999");
  EXPECT_STATUS(results[3], absl::StatusCode::kAlreadyExists, "two processes claim this rank");
  EXPECT_TRUE(results[4]->missing.empty());
  EXPECT_EQ(RefsOf(chunks[0]), 2u);
  EXPECT_EQ(RefsOf(chunks[1]), 0u);
  EXPECT_EQ(RefsOf(chunks[2]), 0u);
  EXPECT_EQ(RefsOf(chunks[3]), 1u);
  EXPECT_EQ(counts_.parts, 3u);
}

TEST_F(SealGroupTest, APartThatCannotBeSealedCostsNoSync) {
  WriteChunk(MakePart(1), MakeChunk(1, 100));
  const auto results = Seal({MakeRequest(MakePart(1), {MakeChunk(1, 100), MakeChunk(2, 100)})});
  EXPECT_EQ(results[0]->missing.size(), 1u);
  EXPECT_EQ(faults_.count(DiskOp::kSync), 0u);
}

TEST_F(SealGroupTest, WhenOneSegmentFailsOnlyItsPartsLackChunks) {
  // The first part's chunks are in segment 1, the second's in segment 2, the third's in both.
  const std::vector<TestChunk> first = MakeChunks(1, 3, 4'000'000);
  const std::vector<TestChunk> second = MakeChunks(10, 2, 4'000'000);
  std::vector<uint64_t> segments;
  for (const TestChunk& chunk : first) segments.push_back(WriteChunk(MakePart(1, 0), chunk).place.segment_id);
  while (segments.back() == 1)
    segments.push_back(WriteChunk(MakePart(9), MakeChunk(100 + segments.size(), 4'000'000)).place.segment_id);
  for (const TestChunk& chunk : second) WriteChunk(MakePart(1, 1), chunk);
  faults_.SetHook([](const esker::testing::DiskEvent& event) {
    const bool first_segment = event.op == DiskOp::kSync && event.file == SegmentFileName(1);
    return first_segment ? absl::DataLossError("broken") : absl::OkStatus();
  });
  const auto results = Seal({MakeRequest(MakePart(1, 0), first), MakeRequest(MakePart(1, 1), second),
                             MakeRequest(MakePart(1, 2), {second[0], first[1]})});
  EXPECT_EQ(results[0]->missing, esker::testing::HashesOf(first));
  EXPECT_TRUE(results[1]->missing.empty());
  EXPECT_EQ(results[2]->missing, std::vector{first[1].hash()});
  EXPECT_EQ(counts_.parts, 1u);
  EXPECT_EQ(RefsOf(second[0]), 1u);
}

TEST_F(SealGroupTest, TheIndexWinsOverAnotherCopy) {
  const TestChunk chunk = MakeChunk(1, 5000);
  Save(MakePart(1), {chunk});
  const WrittenChunk copy = WriteChunk(MakePart(2), chunk);
  const auto results = Seal({MakeRequest(MakePart(2), {chunk})});
  ASSERT_TRUE(results[0]->missing.empty());
  EXPECT_EQ(results[0]->entry.new_stored_bytes(), 0u);
  EXPECT_EQ(RefsOf(chunk), 2u);
  // The copy goes with the session that wrote it.
  ASSERT_EQ(let_go_.size(), 1u);
  ASSERT_EQ(let_go_[0].forgotten.size(), 1u);
  EXPECT_EQ(let_go_[0].forgotten[0].place, copy.place);
}

}  // namespace
}  // namespace esker::store
