#include "server/store/index.h"

#include "tests/server/store/store_fixture.h"

namespace esker::store {
namespace {

using esker::testing::MakeChunk;
using esker::testing::TempDir;

ChunkEntry EntryOf(uint64_t seed, uint64_t segment_id, uint64_t offset, uint64_t refs) {
  return {.info = MakeChunk(seed, 100).info,
          .place = {.segment_id = segment_id, .generation = 1, .offset = offset},
          .refs = refs};
}

class IndexTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    index_ = nullptr;
    absl::StatusOr<std::unique_ptr<Index>> index = Index::Open(directory_.path(), nullptr);
    ASSERT_OK(index);
    index_ = *std::move(index);
  }
  std::vector<PlaceEntry> Places(uint64_t segment_id) const {
    std::vector<PlaceEntry> places;
    EXPECT_OK(index_->ForEachPlaceIn(segment_id, [&](const PlaceEntry& place) {
      places.push_back(place);
      return absl::OkStatus();
    }));
    return places;
  }

  TempDir directory_;
  std::unique_ptr<Index> index_;
};

TEST_F(IndexTest, ChunksAndPlacesGoTogether) {
  const ChunkEntry first = EntryOf(1, 1, 4096, 1);
  const ChunkEntry second = EntryOf(2, 1, 8192, 3);
  const ChunkEntry third = EntryOf(3, 2, 4096, 1);
  IndexBatch batch = index_->NewBatch();
  EXPECT_TRUE(batch.empty());
  for (const ChunkEntry& entry : {first, second, third}) batch.AddChunk(entry);
  EXPECT_FALSE(batch.empty());
  ASSERT_OK(index_->Write(std::move(batch)));
  Open();
  ASSERT_OK_AND_ASSIGN(const auto found,
                       index_->GetChunks(std::vector{second.info.hash, Hash128{}, first.info.hash}));
  EXPECT_EQ(found[0], second);
  EXPECT_FALSE(found[1].has_value());
  EXPECT_EQ(found[2], first);
  ASSERT_EQ(Places(1).size(), 2u);
  EXPECT_EQ(Places(1)[1], (PlaceEntry{1, 8192, 4096, second.info.hash}));
  EXPECT_EQ(Places(2).size(), 1u);
  EXPECT_TRUE(Places(3).empty());

  batch = index_->NewBatch();
  batch.RemoveChunk(second);
  ASSERT_OK(index_->Write(std::move(batch)));
  ASSERT_OK_AND_ASSIGN(const auto gone, index_->GetChunk(second.info.hash));
  EXPECT_FALSE(gone.has_value());
  EXPECT_EQ(Places(1).size(), 1u);
}

TEST_F(IndexTest, UnreferencedChunksAreListed) {
  const ChunkEntry entry = EntryOf(1, 1, 4096, 2);
  IndexBatch batch = index_->NewBatch();
  batch.AddChunk(entry);
  batch.SetRefs(entry, 0);
  ASSERT_OK(index_->Write(std::move(batch)));
  const ChunkEntry now = index_->GetChunk(entry.info.hash).value().value();
  EXPECT_EQ(now.refs, 0u);
  ASSERT_OK_AND_ASSIGN(std::vector<Hash128> listed, index_->ListUnreferenced(10));
  EXPECT_EQ(listed, std::vector{entry.info.hash});

  batch = index_->NewBatch();
  batch.SetRefs(now, 1);
  ASSERT_OK(index_->Write(std::move(batch)));
  ASSERT_OK_AND_ASSIGN(listed, index_->ListUnreferenced(10));
  EXPECT_TRUE(listed.empty());

  for (int seed = 2; seed < 6; ++seed) {
    batch = index_->NewBatch();
    const ChunkEntry other = EntryOf(seed, 1, 4096 * seed, 1);
    batch.AddChunk(other);
    batch.SetRefs(other, 0);
    ASSERT_OK(index_->Write(std::move(batch)));
  }
  ASSERT_OK_AND_ASSIGN(listed, index_->ListUnreferenced(3));
  EXPECT_EQ(listed.size(), 3u);
  batch = index_->NewBatch();
  batch.RemoveChunk(EntryOf(2, 1, 4096 * 2, 0));
  batch.UnlistUnreferenced(MakeChunk(3, 100).hash());
  ASSERT_OK(index_->Write(std::move(batch)));
  ASSERT_OK_AND_ASSIGN(listed, index_->ListUnreferenced(10));
  EXPECT_EQ(listed.size(), 2u);
}

TEST_F(IndexTest, PartsLayoutsManifests) {
  const PartKey key{{.run = "run", .step = 3, .save_id = 4}, 5};
  const PartEntry part{.attempt = 6, .raw_bytes = 7};
  const Hash128 digest = MakeChunk(1, 1).hash();
  IndexBatch batch = index_->NewBatch();
  batch.PutPart(key, part, "part envelope");
  batch.SetLayout(digest, 1, "layout envelope");
  batch.PutManifest(key.save, "manifest envelope");
  ASSERT_OK(index_->Write(std::move(batch)));
  batch = index_->NewBatch();
  batch.SetLayout(digest, 2, std::nullopt);
  ASSERT_OK(index_->Write(std::move(batch)));
  Open();
  EXPECT_EQ(index_->GetPart(key).value(), part);
  EXPECT_EQ(index_->GetPartEnvelope(key).value(), "part envelope");
  EXPECT_EQ(index_->GetLayout(digest).value(), "layout envelope");
  EXPECT_EQ(index_->GetLayoutRefs(digest).value(), 2u);
  EXPECT_EQ(index_->GetManifest(key.save).value(), "manifest envelope");
  EXPECT_EQ(index_->GetPart({key.save, 6}).value(), std::nullopt);
  EXPECT_EQ(index_->GetLayoutRefs(Hash128{}).value(), 0u);

  batch = index_->NewBatch();
  batch.RemovePart(key);
  batch.SetLayout(digest, 0, std::nullopt);
  batch.RemoveManifest(key.save);
  ASSERT_OK(index_->Write(std::move(batch)));
  EXPECT_EQ(index_->GetPart(key).value(), std::nullopt);
  EXPECT_EQ(index_->GetPartEnvelope(key).value(), std::nullopt);
  EXPECT_EQ(index_->GetLayout(digest).value(), std::nullopt);
  EXPECT_EQ(index_->GetLayoutRefs(digest).value(), 0u);
  EXPECT_EQ(index_->GetManifest(key.save).value(), std::nullopt);
  EXPECT_TRUE(index_->ListSaves()->empty());
}

TEST_F(IndexTest, RunsWhoseNamesBeginAlikeDoNotMix) {
  IndexBatch batch = index_->NewBatch();
  for (const char* run : {"a", "a0", "aa"}) {
    for (const uint32_t rank : {0u, 1u}) batch.PutPart({{.run = run, .step = 1, .save_id = 1}, rank}, {}, "");
  }
  ASSERT_OK(index_->Write(std::move(batch)));
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, index_->ListSaves());
  ASSERT_EQ(saves.size(), 3u);
  for (const SaveRef& save : saves) EXPECT_EQ(index_->PartRanks(save).value(), (std::vector<uint32_t>{0, 1}));
}

TEST_F(IndexTest, MetaKeepsIdAndFailedSegments) {
  EXPECT_EQ(index_->GetStoreId().value(), std::nullopt);
  IndexBatch batch = index_->NewBatch();
  batch.PutStoreId("sixteen bytes id");
  batch.PutFailedSegment(0x1234567890abcdef, "fsync failed");
  batch.PutFailedSegment(7, "write failed");
  batch.PutFailedSegment(8, "");
  batch.RemoveFailedSegment(8);
  ASSERT_OK(index_->Write(std::move(batch)));
  Open();
  EXPECT_EQ(index_->GetStoreId().value(), "sixteen bytes id");
  std::vector<std::pair<uint64_t, std::string>> failed;
  ASSERT_OK(index_->ForEachFailedSegment([&](uint64_t id, std::string_view why) {
    failed.emplace_back(id, why);
    return absl::OkStatus();
  }));
  EXPECT_EQ(failed, (std::vector<std::pair<uint64_t, std::string>>{{7, "write failed"},
                                                                   {0x1234567890abcdef, "fsync failed"}}));
}

TEST_F(IndexTest, AVisitorsErrorEndsTheScan) {
  IndexBatch batch = index_->NewBatch();
  for (int seed = 1; seed < 5; ++seed) batch.AddChunk(EntryOf(seed, 1, 4096 * seed, 1));
  ASSERT_OK(index_->Write(std::move(batch)));
  int visited = 0;
  EXPECT_STATUS(index_->ForEachPlace([&](const PlaceEntry&) {
    return ++visited == 2 ? absl::CancelledError("enough") : absl::OkStatus();
  }),
                absl::StatusCode::kCancelled, "enough");
  EXPECT_EQ(visited, 2);
}

}  // namespace
}  // namespace esker::store
