// Saving and reading: what server/store/store.h promises when nothing fails.
#include "server/store/store.h"

#include <future>
#include <thread>

#include "format/envelope.h"
#include "format/layout.h"
#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

TEST_F(StoreTest, APartReadsBackBitForBit) {
  Open();
  // Lengths around the blocks and the two kinds of payload offset.
  std::vector<TestChunk> chunks;
  for (const uint64_t bytes :
       {1ul, 100ul, 3968ul, 3969ul, 4096ul, 65535ul, 65536ul, 65537ul, 1'000'001ul, 4ul << 20}) {
    chunks.push_back(MakeChunk(bytes, bytes));
  }
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SavePart(store_.get(), MakePart(1), chunks));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreTest, PartIsInvisibleUntilSealed) {
  Open();
  const PartRef part = MakePart(7);
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 100'000);
  ASSERT_OK(store_->Reserve(part, 300'000));
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), part, chunk));
  EXPECT_STATUS(store_->GetPart(part.save, 0), absl::StatusCode::kNotFound, "run@7");
  EXPECT_STATUS(ReadRecord(store_.get(), chunks[0].hash()), absl::StatusCode::kNotFound,
                chunks[0].hash().ToHex());
  ASSERT_OK_AND_ASSIGN(std::vector<SaveRef> saves, store_->ListSaves());
  EXPECT_TRUE(saves.empty());

  ASSERT_OK(SealChunks(store_.get(), part, chunks));
  EXPECT_OK(CheckPart(store_.get(), part, chunks));
  ASSERT_OK_AND_ASSIGN(saves, store_->ListSaves());
  EXPECT_EQ(saves, std::vector<SaveRef>{part.save});
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ranks, store_->PartRanks(part.save));
  EXPECT_EQ(ranks, std::vector<uint32_t>{0});
}

TEST_F(StoreTest, SealReturnsSizesAndDigests) {
  Open();
  const PartRef part = MakePart(1, 3);
  std::vector<TestChunk> chunks = MakeChunks(1, 2, 50'000);
  chunks.push_back(chunks[0]);  // named twice, stored once
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SavePart(store_.get(), part, chunks));
  const TestEnvelopes envelopes = EncodePart(part, chunks);
  EXPECT_EQ(sealed.entry.rank(), 3u);
  EXPECT_EQ(sealed.entry.part_digest(), HashOf(AsBytes(envelopes.part)).AsText());
  EXPECT_EQ(sealed.entry.layout_digest(), HashOf(AsBytes(envelopes.layout)).AsText());
  EXPECT_EQ(sealed.entry.raw_bytes(), 150'000u);
  EXPECT_EQ(sealed.entry.stored_bytes(), 100'000u);
  EXPECT_EQ(sealed.entry.new_stored_bytes(), 100'000u);
  ASSERT_OK_AND_ASSIGN(const std::string layout, store_->GetLayout(HashOf(AsBytes(envelopes.layout))));
  EXPECT_EQ(layout, envelopes.layout);
}

TEST_F(StoreTest, DedupeAcrossSaves) {
  Open();
  std::vector<TestChunk> chunks = MakeChunks(1, 4, 200'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), chunks));
  const uint64_t writes = faults_.count(DiskOp::kWrite);

  const PartRef next = MakePart(2);
  chunks[3] = MakeChunk(99, 200'000);
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(next, HashesOf(chunks)));
  EXPECT_EQ(missing, (std::vector<bool>{false, false, false, true}));
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SavePart(store_.get(), next, chunks));
  EXPECT_EQ(sealed.entry.stored_bytes(), 800'000u);
  EXPECT_EQ(sealed.entry.new_stored_bytes(), 200'000u);
  EXPECT_EQ(faults_.count(DiskOp::kWrite), writes + 1);
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 5u);
  EXPECT_EQ(stats.parts, 2u);
  EXPECT_EQ(stats.layouts, 1u);
  EXPECT_EQ(stats.live_bytes, 5 * RecordBytes(200'000));
}

TEST_F(StoreTest, DedupeWithinOneMoment) {
  Open();
  // Another part's chunk that is written but not sealed is held, too.
  const TestChunk chunk = MakeChunk(1, 10'000);
  const PartRef part = MakePart(2);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunk));
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(part, {chunk.hash()}));
  EXPECT_FALSE(missing[0]);
  // The writer goes away; the chunk stays for the other.
  store_->EndSave(MakePart(1).save);
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SealChunks(store_.get(), part, {chunk}));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_EQ(sealed.entry.new_stored_bytes(), 10'000u);
  EXPECT_OK(CheckPart(store_.get(), part, {chunk}));
}

TEST_F(StoreTest, DuplicatePutWritesOnce) {
  Open();
  const TestChunk chunk = MakeChunk(1, 100'000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1, 0), MakeChunk(2, 5000)));  // the segment is begun
  const uint64_t writes = faults_.count(DiskOp::kWrite);
  faults_.HoldWrites();
  std::vector<std::future<absl::Status>> puts;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    puts.push_back(std::async(std::launch::async,
                              [&, rank] { return PutChunk(store_.get(), MakePart(1, rank), chunk); }));
  }
  faults_.AwaitHeldWrites(1);
  faults_.ReleaseWrites();
  for (auto& put : puts) EXPECT_OK(put.get());
  EXPECT_OK(PutChunk(store_.get(), MakePart(1, 5), chunk));
  ASSERT_OK(SealChunks(store_.get(), MakePart(1, 5), {chunk}));
  EXPECT_OK(PutChunk(store_.get(), MakePart(1, 6), chunk));
  EXPECT_EQ(faults_.count(DiskOp::kWrite), writes + 1);
}

TEST_F(StoreTest, OneNameForTwoLengthsIsRefused) {
  Open();
  const TestChunk chunk = MakeChunk(1, 5000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  TestChunk liar = MakeChunk(2, 6000);
  liar.info.hash = chunk.hash();
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(2), liar), absl::StatusCode::kInvalidArgument, "5000");
  EXPECT_STATUS(SealChunks(store_.get(), MakePart(2), {liar}), absl::StatusCode::kInvalidArgument, "5000");
  const TestChunk pending = MakeChunk(3, 5000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(2), pending));
  liar.info.hash = pending.hash();
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(2), liar), absl::StatusCode::kInvalidArgument, "5000");
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreTest, SealReportsMissingAfterRestart) {
  Open();
  const PartRef part = MakePart(1);
  const std::vector<TestChunk> kept = MakeChunks(1, 2, 50'000);
  std::vector<TestChunk> chunks = MakeChunks(10, 3, 50'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(0), kept));
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), part, chunk));
  Reopen();
  chunks.insert(chunks.begin() + 1, kept.begin(), kept.end());
  ASSERT_OK_AND_ASSIGN(SealResult sealed, SealChunks(store_.get(), part, chunks));
  EXPECT_EQ(sealed.missing, (std::vector<Hash128>{chunks[0].hash(), chunks[3].hash(), chunks[4].hash()}));
  EXPECT_STATUS(store_->GetPart(part.save, 0), absl::StatusCode::kNotFound, "rank 0");

  // What it held is kept for the part until the rest is there, whatever else lets go of it.
  ASSERT_OK(store_->RemoveSave(MakePart(0).save));
  for (const size_t i : {0, 3, 4}) ASSERT_OK(PutChunk(store_.get(), part, chunks[i]));
  ASSERT_OK_AND_ASSIGN(sealed, SealChunks(store_.get(), part, chunks));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_OK(CheckPart(store_.get(), part, chunks));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreTest, SealIsIdempotent) {
  Open();
  const PartRef part = MakePart(1);
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 50'000);
  ASSERT_OK_AND_ASSIGN(const SealResult first, SavePart(store_.get(), part, chunks));
  ASSERT_OK_AND_ASSIGN(const SealResult second, SealChunks(store_.get(), part, chunks));
  EXPECT_EQ(second.entry.SerializeAsString(), first.entry.SerializeAsString());
  Reopen();
  ASSERT_OK_AND_ASSIGN(const SealResult third, SealChunks(store_.get(), part, chunks));
  EXPECT_EQ(third.entry.SerializeAsString(), first.entry.SerializeAsString());
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.parts, 1u);
  EXPECT_EQ(stats.open_saves, 0u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreTest, TheSamePartSealedByManyAtOnceIsOnePart) {
  Open();
  const PartRef part = MakePart(1);
  const std::vector<TestChunk> chunks = MakeChunks(1, 3, 50'000);
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), part, chunk));
  std::vector<std::future<absl::StatusOr<SealResult>>> seals;
  for (int i = 0; i < 8; ++i) {
    seals.push_back(std::async(std::launch::async, [&] { return SealChunks(store_.get(), part, chunks); }));
  }
  for (auto& seal : seals) {
    absl::StatusOr<SealResult> sealed = seal.get();
    ASSERT_OK(sealed);
    EXPECT_EQ(sealed->entry.new_stored_bytes(), 150'000u);
  }
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreTest, ContradictingSealNamesBoth) {
  Open();
  const PartRef part = MakePart(1);
  const std::vector<TestChunk> chunks = MakeChunks(1, 1, 5000);
  const std::vector<TestChunk> others = MakeChunks(2, 1, 5000);
  ASSERT_OK(SavePart(store_.get(), part, chunks));
  ASSERT_OK(PutChunk(store_.get(), part, others[0]));
  const absl::StatusOr<SealResult> sealed = SealChunks(store_.get(), part, others);
  EXPECT_STATUS(sealed, absl::StatusCode::kAlreadyExists,
                HashOf(AsBytes(EncodePart(part, chunks).part)).ToHex());
  EXPECT_STATUS(sealed, absl::StatusCode::kAlreadyExists,
                HashOf(AsBytes(EncodePart(part, others).part)).ToHex());
  EXPECT_OK(CheckPart(store_.get(), part, chunks));
}

TEST_F(StoreTest, SealRefusesWhatIsNotThisPart) {
  Open();
  const PartRef part = MakePart(1);
  const std::vector<TestChunk> chunks = MakeChunks(1, 2, 5000);
  for (const TestChunk& chunk : chunks) ASSERT_OK(PutChunk(store_.get(), part, chunk));
  const TestEnvelopes good = EncodePart(part, chunks);
  const auto seal = [&](const PartRef& ref, std::string_view part_envelope,
                        std::string_view layout_envelope) {
    return store_->Seal(ref, part_envelope, layout_envelope);
  };
  EXPECT_STATUS(seal(MakePart(1, 1), good.part, good.layout), absl::StatusCode::kInvalidArgument, "rank 0");
  EXPECT_STATUS(seal(part, "", good.layout), absl::StatusCode::kInvalidArgument, "part");
  EXPECT_STATUS(seal(part, good.layout, good.layout), absl::StatusCode::kInvalidArgument, "part");
  EXPECT_STATUS(seal(part, good.part, good.part), absl::StatusCode::kInvalidArgument, "layout");
  EXPECT_STATUS(seal(part, good.part, EncodePart(part, chunks, "other").layout),
                absl::StatusCode::kInvalidArgument, "digest");
  std::string damaged = good.part;
  damaged.back() ^= 1;
  EXPECT_STATUS(seal(part, damaged, good.layout), absl::StatusCode::kInvalidArgument, "CRC");
  // A chunk named twice with two lengths.
  std::vector<TestChunk> liars = chunks;
  liars.push_back(chunks[0]);
  liars.back().info.raw_bytes = 6000;
  EXPECT_STATUS(SealChunks(store_.get(), part, liars), absl::StatusCode::kInvalidArgument, "6000");
  EXPECT_STATUS(store_->GetPart(part.save, 0), absl::StatusCode::kNotFound, "rank 0");
  EXPECT_OK(seal(part, good.part, good.layout));
}

TEST_F(StoreTest, LayoutIsAskedForOnceAndStoredOnce) {
  Open();
  const std::vector<TestChunk> chunks = MakeChunks(1, 1, 5000);
  ASSERT_OK(PutChunk(store_.get(), MakePart(1), chunks[0]));
  const TestEnvelopes first = EncodePart(MakePart(1), chunks);
  EXPECT_STATUS(store_->Seal(MakePart(1), first.part, ""), absl::StatusCode::kFailedPrecondition, "layout");
  ASSERT_OK(store_->Seal(MakePart(1), first.part, first.layout));
  const TestEnvelopes second = EncodePart(MakePart(2), chunks);
  ASSERT_OK(store_->Seal(MakePart(2), second.part, ""));
  const Hash128 digest = HashOf(AsBytes(first.layout));
  // It goes with the last part that names it.
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_OK(store_->GetLayout(digest));
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  EXPECT_STATUS(store_->GetLayout(digest), absl::StatusCode::kNotFound, digest.ToHex());
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.layouts, 0u);
}

TEST_F(StoreTest, AnEmptyPartCanBeSealed) {
  Open();
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SealChunks(store_.get(), MakePart(1), {}));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_EQ(sealed.entry.raw_bytes(), 0u);
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), {}));
}

TEST_F(StoreTest, BadPutsAreRefused) {
  Open();
  TestChunk chunk = MakeChunk(1, 5000);
  std::promise<absl::Status> done;
  store_->Put(MakePart(1), chunk.info, store_->buffers()->Acquire(4096),
              [&](absl::Status status) { done.set_value(std::move(status)); });
  EXPECT_STATUS(done.get_future().get(), absl::StatusCode::kInvalidArgument, "buffer");
  chunk.info.stored_bytes = 6000;
  EXPECT_STATUS(PutChunk(store_.get(), MakePart(1), chunk), absl::StatusCode::kInvalidArgument, "stored");
}

TEST_F(StoreTest, ManifestsAreImmutable) {
  Open();
  const SaveRef save = MakePart(5).save;
  EXPECT_STATUS(store_->GetManifest(save), absl::StatusCode::kNotFound, "run@5");
  ASSERT_OK(store_->PutManifest(save, "the manifest"));
  EXPECT_OK(store_->PutManifest(save, "the manifest"));
  EXPECT_STATUS(store_->PutManifest(save, "another"), absl::StatusCode::kAlreadyExists, "run@5");
  Reopen();
  ASSERT_OK_AND_ASSIGN(const std::string manifest, store_->GetManifest(save));
  EXPECT_EQ(manifest, "the manifest");
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, store_->ListSaves());
  EXPECT_EQ(saves, std::vector<SaveRef>{save});
}

TEST_F(StoreTest, ListsSavesInOrderWhateverTheirRanks) {
  Open();
  std::vector<SaveRef> expected;
  const TestChunk chunk = MakeChunk(1, 100);
  for (const char* run : {"a", "a-b", "b"}) {
    for (const uint64_t step : {0ul, 9ul, 10ul, 1ul << 62}) {
      const SaveRef save{.run = run, .step = step, .save_id = ~uint64_t{0} - step};
      expected.push_back(save);
      for (const uint32_t rank : {0u, 1u, 300u, UINT32_MAX}) {
        ASSERT_OK(SavePart(store_.get(), {.save = save, .attempt = 1, .rank = rank}, {chunk}));
      }
    }
  }
  const SaveRef only_manifest{.run = "a", .step = 5, .save_id = 1};
  ASSERT_OK(store_->PutManifest(only_manifest, "m"));
  expected.insert(expected.begin() + 1, only_manifest);
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, store_->ListSaves());
  EXPECT_EQ(saves, expected);
  ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ranks, store_->PartRanks(expected[2]));
  EXPECT_EQ(ranks, (std::vector<uint32_t>{0, 1, 300, UINT32_MAX}));
}

TEST_F(StoreTest, LocateSaysWhereTheRecordIs) {
  Open();
  const TestChunk chunk = MakeChunk(1, 100'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), {chunk}));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(chunk.hash()));
  EXPECT_EQ(location.file, segments_path() + "/segment-0000000000000001.esk");
  EXPECT_EQ(location.offset, 4096u);
  EXPECT_EQ(location.record_bytes, RecordBytes(100'000));
  EXPECT_STATUS(store_->Locate(Hash128{}), absl::StatusCode::kNotFound, Hash128{}.ToHex());
}

TEST_F(StoreTest, OpenSavesTellTheLastSignOfLife) {
  Open();
  const SaveRef first = MakePart(1).save;
  const SaveRef second = MakePart(2).save;
  ASSERT_OK(store_->Reserve(MakePart(1), 1000));
  clock_.Advance(10);
  const int64_t offered_ms = clock_.MonotonicMillis();
  ASSERT_OK(store_->Offer(MakePart(2), {Hash128{}}));
  clock_.Advance(10);
  const int64_t put_ms = clock_.MonotonicMillis();
  ASSERT_OK(PutChunk(store_.get(), MakePart(1, 1), MakeChunk(1, 100)));
  clock_.Advance(10);
  EXPECT_EQ(store_->OpenSaves(),
            (std::vector<std::pair<SaveRef, int64_t>>{{first, put_ms}, {second, offered_ms}}));
  store_->EndSave(first);
  EXPECT_EQ(store_->OpenSaves(), (std::vector<std::pair<SaveRef, int64_t>>{{second, offered_ms}}));
}

TEST_F(StoreTest, IdStaysTheSame) {
  Open();
  const std::string id = store_->id();
  EXPECT_EQ(id.size(), 36u);
  Reopen();
  EXPECT_EQ(store_->id(), id);
  EXPECT_FALSE(store_->DescribeDisk().empty());
}

TEST_F(StoreTest, LeaseExpires) {
  Open();
  const SaveRef save = MakePart(1).save;
  EXPECT_FALSE(store_->HasReaders(save));
  const uint64_t lease = store_->OpenRead(save);
  EXPECT_TRUE(store_->HasReaders(save));
  EXPECT_FALSE(store_->HasReaders(MakePart(2).save));
  clock_.Advance(29'999);
  EXPECT_OK(store_->RenewRead(lease));
  clock_.Advance(29'999);
  EXPECT_TRUE(store_->HasReaders(save));
  clock_.Advance(1);
  EXPECT_FALSE(store_->HasReaders(save));
  EXPECT_STATUS(store_->RenewRead(lease), absl::StatusCode::kNotFound, "30000 ms");
  const uint64_t other = store_->OpenRead(save);
  store_->CloseRead(other);
  EXPECT_FALSE(store_->HasReaders(save));
}

TEST_F(StoreTest, AfterARestartThereMayBeUnknownReaders) {
  Open();
  EXPECT_FALSE(store_->MayHaveUnknownReaders());  // it is new
  Reopen();
  EXPECT_TRUE(store_->MayHaveUnknownReaders());
  clock_.Advance(30'000);
  EXPECT_FALSE(store_->MayHaveUnknownReaders());
}

TEST_F(StoreTest, BadOptionsAreRefused) {
  options_.segment_bytes = 1 << 20;
  EXPECT_STATUS(TryOpen(), absl::StatusCode::kInvalidArgument, "segments");
  options_.segment_bytes = (16 << 20) + 1;
  EXPECT_STATUS(TryOpen(), absl::StatusCode::kInvalidArgument, "segments");
  options_.segment_bytes = 16 << 20;
  options_.buffer_pool_bytes = 1 << 20;
  EXPECT_STATUS(TryOpen(), absl::StatusCode::kInvalidArgument, "buffers");
}

TEST_F(StoreTest, WorksOnEitherDiskEngine) {
  for (const DiskEngine engine : {DiskEngine::kThreadPool, DiskEngine::kAuto}) {
    options_.engine = engine;
    Reopen();
    const uint64_t step = static_cast<uint64_t>(engine) + 1;
    ASSERT_OK(SavePart(store_.get(), MakePart(step), MakeChunks(step * 100, 5, 1'000'000)));
    EXPECT_OK(CheckPart(store_.get(), MakePart(step), MakeChunks(step * 100, 5, 1'000'000)));
    EXPECT_OK(store_->CheckConsistency());
  }
}

}  // namespace
}  // namespace esker::testing
