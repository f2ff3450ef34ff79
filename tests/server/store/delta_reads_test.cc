// Chunks that are stored as deltas of others: read whole, and never without their bases.
#include "server/store/delta_reads.h"

#include <fstream>
#include <future>

#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

constexpr uint64_t kBytes = 300'000;

class DeltaTest : public StoreTest {
 protected:
  void SetUp() override {
    Open();
    ASSERT_OK(SavePart(store_.get(), MakePart(1), {base_}));
  }
  absl::Status Put(uint64_t step, const TestChunk& chunk) {
    return PutChunk(store_.get(), MakePart(step), chunk);
  }
  uint64_t Chunks() {
    const absl::StatusOr<StoreStats> stats = store_->Stats();
    EXPECT_OK(stats);
    return stats->chunks;
  }
  // Of the chunk's stored bytes on the disk.
  void Damage(const TestChunk& chunk) {
    const absl::StatusOr<ChunkLocation> location = store_->Locate(chunk.hash());
    ASSERT_OK(location);
    std::fstream file(location->file, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(location->offset + PayloadOffset(chunk.info.stored_bytes) + 30));
    file.put(static_cast<char>(0x5a));
    file.put(static_cast<char>(0xa5));
    file.close();
    ASSERT_TRUE(file.good());
    EXPECT_STATUS(ReadRecord(store_.get(), chunk.hash()), absl::StatusCode::kDataLoss, location->file);
  }

  const TestChunk base_ = MakeChunk(1, kBytes);
  const TestChunk whole_ = MakeVariant(base_, 2);
  const TestChunk delta_ = AsDeltaOf(base_, whole_);
};

TEST_F(DeltaTest, ReadsBackWhole) {
  ASSERT_LT(delta_.info.stored_bytes, kBytes / 10);
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SavePart(store_.get(), MakePart(2), {delta_}));
  EXPECT_EQ(sealed.entry.stored_bytes(), delta_.info.stored_bytes);
  for (int i = 0; i < 2; ++i) {
    EXPECT_OK(CheckPart(store_.get(), MakePart(2), {delta_}));
    {
      ASSERT_OK_AND_ASSIGN(const auto shared, ReadRecord(store_.get(), delta_.hash(), ReadMode::kShared));
      EXPECT_EQ(AsText(shared->stored()), whole_.raw);
    }
    EXPECT_OK(store_->CheckConsistency());
    Reopen();
  }
}

TEST_F(DeltaTest, KeepsItsBase) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {delta_}));
  EXPECT_OK(store_->CheckConsistency());
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {delta_}));
  EXPECT_EQ(Chunks(), 2u);
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  EXPECT_EQ(Chunks(), 0u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, GoesTogetherWithItsBase) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {base_, delta_}));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(Chunks(), 2u);
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  EXPECT_EQ(Chunks(), 0u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, OfWhatTheStoreDoesNotHoldWholeIsRefused) {
  const auto expect_refused = [&](const TestChunk& of, const TestChunk& chunk) {
    EXPECT_STATUS(
        Put(3, AsDeltaOf(of, chunk)), absl::StatusCode::kFailedPrecondition,
        "delta of chunk " + of.hash().ToHex() + ", which the store does not hold whole: put it whole");
  };
  const TestChunk unknown = MakeChunk(7, kBytes);
  expect_refused(unknown, MakeVariant(unknown, 8));

  // Put, but not sealed.
  ASSERT_OK(Put(2, unknown));
  expect_refused(unknown, MakeVariant(unknown, 8));

  // A delta itself.
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  expect_refused(whole_, MakeVariant(whole_, 9));

  // Damaged.
  Damage(base_);
  expect_refused(base_, MakeVariant(base_, 10));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, OfAnotherLengthIsRefused) {
  TestChunk longer = delta_;
  longer.info.raw_bytes += 8;
  EXPECT_STATUS(Put(2, longer), absl::StatusCode::kFailedPrecondition, "put it whole");
}

TEST_F(DeltaTest, ThatIsNoneIsRefused) {
  TestChunk bad = delta_;
  bad.encoded[16] = 77;
  EXPECT_STATUS(Put(2, bad), absl::StatusCode::kInvalidArgument, "codec 77");
  bad.encoded.resize(10);
  bad.info.stored_bytes = 10;
  EXPECT_STATUS(Put(2, bad), absl::StatusCode::kInvalidArgument, "expected more than 24");
}

// It is put, not yet sealed: the base, which no part names any more, must not go.
TEST_F(DeltaTest, ThatIsNotYetSealedKeepsItsBase) {
  ASSERT_OK(Put(2, delta_));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(Chunks(), 1u);
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK_AND_ASSIGN(const SealResult sealed, SealChunks(store_.get(), MakePart(2), {delta_}));
  EXPECT_TRUE(sealed.missing.empty());
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {delta_}));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, ThatIsGivenUpLetsGoOfItsBase) {
  ASSERT_OK(Put(2, delta_));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  store_->EndSave(MakePart(2).save);
  ASSERT_OK(store_->CheckConsistency());  // behind what the committer had to do
  EXPECT_EQ(Chunks(), 0u);
}

TEST_F(DeltaTest, ThatACrashForgetsLetsGoOfItsBase) {
  ASSERT_OK(Put(2, delta_));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  Reopen();
  EXPECT_EQ(Chunks(), 0u);
  EXPECT_OK(store_->CheckConsistency());
}

// A pinned delta stays with a count of 0, and its base with it: at a start both go, one after the other.
TEST_F(DeltaTest, ThatWasPinnedGoesWithItsBaseAtTheNextStart) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  ASSERT_OK(store_->Offer(MakePart(3), {delta_.hash()}));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  EXPECT_EQ(Chunks(), 2u);
  EXPECT_OK(store_->CheckConsistency());
  Reopen();
  EXPECT_EQ(Chunks(), 0u);
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, ThatWasPinnedIsNamedAgain) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  ASSERT_OK(store_->Offer(MakePart(3), {delta_.hash()}));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  ASSERT_OK(store_->RemoveSave(MakePart(2).save));
  ASSERT_OK(SealChunks(store_.get(), MakePart(3), {delta_}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(3), {delta_}));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK(store_->RemoveSave(MakePart(3).save));
  EXPECT_EQ(Chunks(), 0u);
}

// Another rank names a chunk that this one put as a delta, and this one goes.
TEST_F(DeltaTest, OfAnotherRankIsSealedWithItsBase) {
  ASSERT_OK(Put(2, delta_));
  ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(MakePart(3), {delta_.hash()}));
  EXPECT_FALSE(missing[0]);
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  store_->EndSave(MakePart(2).save);
  ASSERT_OK(SealChunks(store_.get(), MakePart(3), {delta_}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(3), {delta_}));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, ThatIsDamagedIsHealedWholeAndLetsGoOfItsBase) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  Damage(delta_);
  EXPECT_STATUS(Put(3, delta_), absl::StatusCode::kFailedPrecondition, "only whole");
  ASSERT_OK(SavePart(store_.get(), MakePart(3), {whole_}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {whole_}));
  EXPECT_OK(store_->CheckConsistency());
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_EQ(Chunks(), 1u);
  EXPECT_OK(store_->CheckConsistency());
}

// The base had no other reference than the damaged delta's.
TEST_F(DeltaTest, ThatIsHealedTakesABaseThatNobodyNamesWithIt) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  Damage(delta_);
  ASSERT_OK(SavePart(store_.get(), MakePart(3), {whole_}));
  ASSERT_OK(store_->CheckConsistency());
  EXPECT_EQ(Chunks(), 1u);
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {whole_}));
}

TEST_F(DeltaTest, OfADamagedBaseSaysSoAndIsHealedWithIt) {
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {delta_}));
  ASSERT_OK_AND_ASSIGN(const ChunkLocation location, store_->Locate(base_.hash()));
  Damage(base_);
  const ChunkReadOr read = ReadRecord(store_.get(), delta_.hash());
  EXPECT_STATUS(read, absl::StatusCode::kDataLoss, "its base " + base_.hash().ToHex());
  EXPECT_STATUS(read, absl::StatusCode::kDataLoss, location.file);
  ASSERT_OK(SavePart(store_.get(), MakePart(3), {base_}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), {delta_}));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(DeltaTest, ManyAreReadAtATimeThroughASmallPool) {
  const TestChunk large = MakeChunk(50, kMaxChunkBytes);
  ASSERT_OK(SavePart(store_.get(), MakePart(2), {large}));
  std::vector<TestChunk> deltas;
  for (uint64_t i = 0; i < 12; ++i) deltas.push_back(AsDeltaOf(large, MakeVariant(large, 60 + i)));
  ASSERT_OK(SavePart(store_.get(), MakePart(3), deltas));
  std::vector<std::future<bool>> reads;
  for (int reader = 0; reader < 3; ++reader) {
    for (const TestChunk& delta : deltas) {
      reads.push_back(std::async(std::launch::async, [this, &delta] {
        const ChunkReadOr read = ReadRecord(store_.get(), delta.hash(), ReadMode::kShared);
        return read.ok() && AsText((*read)->stored()) == delta.raw;
      }));
    }
  }
  for (std::future<bool>& read : reads) EXPECT_TRUE(read.get());
}

}  // namespace
}  // namespace esker::testing
