// The audit finds what it is there to find: one fault at a time is made in a sound store.
#include "server/store/consistency.h"

#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::MakeChunk;
using esker::testing::MakeChunks;
using esker::testing::MakePart;
using esker::testing::TestChunk;

class ConsistencyTest : public ComponentsTest {
 protected:
  void SetUp() override {
    ComponentsTest::SetUp();
    Save(MakePart(1), chunks_);
    Save(MakePart(2), {chunks_[0], MakeChunk(50, 5000)});
    ASSERT_OK(Check());
  }
  absl::Status Check() { return CheckStore(context_.get(), store_id_); }
  ChunkEntry Entry(const TestChunk& chunk) const { return index_->GetChunk(chunk.hash()).value().value(); }
  void Write(const std::function<void(IndexBatch*)>& change) {
    IndexBatch batch = index_->NewBatch();
    change(&batch);
    ASSERT_OK(index_->Write(std::move(batch)));
  }

  const std::vector<TestChunk> chunks_ = MakeChunks(1, 4, 100'000);
};

TEST_F(ConsistencyTest, WrongReferenceCount) {
  Write([&](IndexBatch* batch) { batch->SetRefs(Entry(chunks_[0]), 3); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "3 references, but 2 parts and deltas name it");
}

TEST_F(ConsistencyTest, AChunkThatIsNotThere) {
  Write([&](IndexBatch* batch) { batch->RemoveChunk(Entry(chunks_[1])); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, chunks_[1].hash().ToHex());
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "live bytes");
}

TEST_F(ConsistencyTest, AChunkThatNobodyNames) {
  ChunkEntry entry = Entry(chunks_[0]);
  entry.info.hash = MakeChunk(99, 1).hash();
  entry.place.offset = InfoOf(1).tail - entry.record_bytes();
  entry.refs = 0;
  Write([&](IndexBatch* batch) { batch->AddChunk(entry); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "not listed as such");
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "overlaps");
}

TEST_F(ConsistencyTest, AChunkListedAsUnreferencedThatIsNot) {
  Write([&](IndexBatch* batch) {
    batch->SetRefs(Entry(chunks_[0]), 0);
    ChunkEntry entry = Entry(chunks_[0]);
    batch->SetRefs(entry, 2);
  });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "listed as unreferenced, and is not");
}

TEST_F(ConsistencyTest, ADeltaIsAReferenceToItsBaseAndToNoDelta) {
  ChunkEntry delta = Entry(chunks_[1]);
  delta.info.codec = CodecId::kDelta;
  delta.base = chunks_[0].hash();
  Write([&](IndexBatch* batch) { batch->AddChunk(delta); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "parts and deltas name it");
  delta.base = delta.info.hash;
  Write([&](IndexBatch* batch) { batch->AddChunk(delta); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "which is one itself");
}

TEST_F(ConsistencyTest, APlaceThatAnotherChunkClaims) {
  ChunkEntry thief = Entry(chunks_[1]);
  thief.place = Entry(chunks_[0]).place;
  Write([&](IndexBatch* batch) { batch->AddChunk(thief); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "whose entry says otherwise");
}

TEST_F(ConsistencyTest, AStaleGeneration) {
  ChunkEntry stale = Entry(chunks_[1]);
  stale.place.generation = 7;
  Write([&](IndexBatch* batch) { batch->AddChunk(stale); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "generation 7");
}

TEST_F(ConsistencyTest, ARecordOutsideItsSegment) {
  ChunkEntry entry = Entry(chunks_[3]);
  Write([&](IndexBatch* batch) {
    batch->RemoveChunk(entry);
    entry.place.offset = 1 << 30;
    batch->AddChunk(entry);
  });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "records lie between");
}

TEST_F(ConsistencyTest, APartWithoutItsEnvelopeOrLayout) {
  const PartKey key{MakePart(1).save, 0};
  const PartEntry entry = index_->GetPart(key).value().value();
  Write([&](IndexBatch* batch) { batch->PutPart(key, entry, "damaged"); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "not what its digest says");
  Write([&](IndexBatch* batch) { batch->SetLayout(entry.layout_digest, 0, std::nullopt); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, entry.layout_digest.ToHex());
}

TEST_F(ConsistencyTest, WrongLayoutCount) {
  const PartEntry entry = index_->GetPart({MakePart(1).save, 0}).value().value();
  Write([&](IndexBatch* batch) { batch->SetLayout(entry.layout_digest, 5, std::nullopt); });
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "5 references, but 2 parts name it");
}

TEST_F(ConsistencyTest, WrongCounters) {
  ++counts_.chunks;
  ++counts_.parts;
  ++counts_.layouts;
  for (const char* text : {"there are 5 chunks", "there are 2 parts", "there are 1 layouts"}) {
    EXPECT_STATUS(Check(), absl::StatusCode::kInternal, text);
  }
}

TEST_F(ConsistencyTest, SpaceThatIsNotAccountedFor) {
  for (const TestChunk& chunk : MakeChunks(200, 3, 3'000'000)) WriteChunk(MakePart(9), chunk);
  Save(MakePart(3), {MakeChunk(300, 5000)});
  ASSERT_OK(Check());  // written, used, pinned
  segments_->HoldReclaim(true);
  const LetGo let_go = sessions_->EndSave(MakePart(9).save);
  context_->ReleaseForgotten(let_go.forgotten);
  ASSERT_OK(Check());  // released, soon to be given back
  // As if it had been given back, and was not.
  faults_.FailNext(esker::testing::DiskOp::kPunch, 100, absl::DataLossError("broken"));
  segments_->HoldReclaim(false);
  segments_->Reclaim();
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, "bytes of disk, expected are at most");
}

TEST_F(ConsistencyTest, ADamagedOrMissingFile) {
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<DiskFile> file, segments_->Open(1));
  ASSERT_OK(file->PunchHole(0, kBlockBytes));
  EXPECT_STATUS(Check(), absl::StatusCode::kInternal, segments_->FilePath(1));
}

}  // namespace
}  // namespace esker::store
