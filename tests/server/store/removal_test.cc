#include "server/store/removal.h"

#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::MakeChunk;
using esker::testing::MakeChunks;
using esker::testing::MakePart;
using esker::testing::TestChunk;

class RemovalTest : public ComponentsTest {
 protected:
  RemovedParts Remove(const SaveRef& save, const std::vector<uint32_t>& ranks) {
    unpinned_.clear();
    absl::StatusOr<RemovedParts> removed = RemoveParts(context_.get(), save, ranks, &unpinned_);
    EXPECT_OK(removed);
    return removed.value_or(RemovedParts{});
  }
  std::optional<ChunkEntry> Entry(const TestChunk& chunk) const {
    return index_->GetChunk(chunk.hash()).value();
  }

  std::vector<Hash128> unpinned_;
};

TEST_F(RemovalTest, CountsFallByOneForEachPart) {
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 5000);
  Save(MakePart(1, 0), {chunks[0], chunks[1], chunks[0]});
  Save(MakePart(1, 1), {chunks[1], chunks[2]});
  Save(MakePart(2, 0), {chunks[2]});
  const RemovedParts removed = Remove(MakePart(1).save, {0, 1, 2});
  EXPECT_EQ(removed.parts, 2u);
  EXPECT_EQ(removed.chunks, 2u);
  EXPECT_EQ(removed.chunk_bytes, 2 * RecordBytes(5000));
  EXPECT_EQ(removed.ranks_done, 3u);
  EXPECT_EQ(Entry(chunks[0]), std::nullopt);
  EXPECT_EQ(Entry(chunks[1]), std::nullopt);
  EXPECT_EQ(Entry(chunks[2])->refs, 1u);
  EXPECT_EQ(counts_.parts, 1u);
  EXPECT_EQ(counts_.chunks, 1u);
  EXPECT_EQ(counts_.layouts, 1u);
  EXPECT_EQ(InfoOf(1).live_bytes, RecordBytes(5000));
  EXPECT_EQ(Remove(MakePart(1).save, {0, 1}).parts, 0u);
  Remove(MakePart(2).save, {0});
  EXPECT_EQ(counts_.layouts, 0u);
  EXPECT_EQ(InfoOf(1).used_bytes, 0u);
}

TEST_F(RemovalTest, PinnedChunksStayUntilReaped) {
  const TestChunk chunk = MakeChunk(1, 5000);
  Save(MakePart(1), {chunk});
  const std::vector<Hash128> hashes = {chunk.hash()};
  ASSERT_TRUE(sessions_->PinForRead(chunk.hash()));
  EXPECT_EQ(Remove(MakePart(1).save, {0}).chunks, 0u);
  EXPECT_TRUE(unpinned_.empty());
  EXPECT_EQ(Entry(chunk)->refs, 0u);
  ASSERT_OK(Reap(context_.get(), hashes));  // too early
  EXPECT_TRUE(Entry(chunk).has_value());
  EXPECT_EQ(sessions_->Unpin(hashes).unreferenced, hashes);
  ASSERT_OK(Reap(context_.get(), hashes));
  EXPECT_FALSE(Entry(chunk).has_value());
  EXPECT_TRUE(index_->ListUnreferenced(10)->empty());
  EXPECT_EQ(counts_.chunks, 0u);
  EXPECT_EQ(InfoOf(1).used_bytes, 0u);
  ASSERT_OK(Reap(context_.get(), hashes));
}

TEST_F(RemovalTest, AChunkThatIsNamedAgainIsNotReaped) {
  const TestChunk chunk = MakeChunk(1, 5000);
  Save(MakePart(1), {chunk});
  ASSERT_OK(sessions_->PinForPart(MakePart(2), std::vector{chunk.hash()}));
  Remove(MakePart(1).save, {0});
  Save(MakePart(2), {chunk});
  EXPECT_EQ(Entry(chunk)->refs, 1u);
  EXPECT_TRUE(index_->ListUnreferenced(10)->empty());
  ASSERT_OK(Reap(context_.get(), std::vector{chunk.hash()}));
  EXPECT_EQ(Entry(chunk)->refs, 1u);
}

TEST_F(RemovalTest, LargeSavesGoInSeveralBatches) {
  // Parts of 10,000 chunks each, which are all in the index already: as entries without a file.
  IndexBatch batch = index_->NewBatch();
  std::vector<std::vector<TestChunk>> parts(3);
  for (uint32_t rank = 0; rank < parts.size(); ++rank) {
    for (int i = 0; i < 10'000; ++i) {
      TestChunk chunk;
      chunk.info = MakeChunk(1, 1).info;
      const uint64_t name = rank * 100'000 + i;
      std::memcpy(chunk.info.hash.bytes.data(), &name, sizeof(name));
      parts[rank].push_back(chunk);
      batch.AddChunk(
          {.info = chunk.info, .place = {.segment_id = 1, .generation = 1, .offset = 4096 * (1 + name)}});
    }
  }
  ASSERT_OK(index_->Write(std::move(batch)));
  segments_->Adopt({.id = 1,
                    .generation = 1,
                    .segment_bytes = uint64_t{1} << 40,
                    .used_bytes = 30'000 * 4096,
                    .live_bytes = 30'000 * 4096});
  counts_.chunks = 30'000;
  for (uint32_t rank = 0; rank < parts.size(); ++rank) Save(MakePart(1, rank), parts[rank]);
  RemovedParts removed = Remove(MakePart(1).save, {0, 1, 2});
  EXPECT_EQ(removed.ranks_done, 2u);
  EXPECT_EQ(removed.chunks, 20'000u);
  removed = Remove(MakePart(1).save, {2});
  EXPECT_EQ(removed.ranks_done, 1u);
  EXPECT_EQ(removed.chunks, 10'000u);
  EXPECT_EQ(counts_.chunks, 0u);
}

TEST_F(RemovalTest, CountsThatWouldFallBelowZeroAreAnError) {
  const TestChunk chunk = MakeChunk(1, 5000);
  Save(MakePart(1), {chunk});
  IndexBatch batch = index_->NewBatch();
  batch.SetRefs(*Entry(chunk), 0);
  ASSERT_OK(index_->Write(std::move(batch)));
  std::vector<Hash128> unpinned;
  EXPECT_STATUS(RemoveParts(context_.get(), MakePart(1).save, std::vector<uint32_t>{0}, &unpinned),
                absl::StatusCode::kInternal, chunk.hash().ToHex());
}

}  // namespace
}  // namespace esker::store
