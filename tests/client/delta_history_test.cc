#include "client/delta_history.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "tests/client/state_builder.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

constexpr uint64_t kChunkBytes = 4096;
constexpr uint64_t kWholeBytes = 1000;  // what a save takes that is stored whole

class DeltaHistoryTest : public ::testing::Test {
 protected:
  DeltaHistoryTest() { tensor_ = &builder_.Add(WholeTensor("w", ElementType::kF32, {10'000})); }

  // Copied as it is now, with an item of `item_bytes`.
  Snapshot Take(uint64_t item_bytes = 100) {
    builder_.state().items.clear();
    builder_.AddItem("i", std::string(item_bytes, 'i'));
    return TakeOf(builder_.state());
  }
  Snapshot TakeOf(const State& state) {
    absl::StatusOr<std::shared_ptr<const LayoutPlan>> plan = cache_.Get(state);
    EXPECT_OK(plan);
    absl::StatusOr<Snapshot> snapshot = PrepareSnapshot(state, *plan, arena_.get(), &history_);
    EXPECT_OK(snapshot);
    CopyState(state, *snapshot, &pool_, [](size_t) {});
    return *std::move(snapshot);
  }
  void Commit(const Snapshot& snapshot, uint64_t stored_bytes) {
    history_.Committed(snapshot, snapshot.base != nullptr, stored_bytes, HashesOf(snapshot));
  }
  Snapshot Save(uint64_t stored_bytes) {
    builder_.Refill(tensor_);
    Snapshot snapshot = Take();
    Commit(snapshot, stored_bytes);
    return snapshot;
  }

  static std::vector<Hash128> HashesOf(const Snapshot& snapshot) {
    std::vector<Hash128> hashes;
    for (const SnapshotChunk& chunk : snapshot.chunks) hashes.push_back(HashOf(snapshot.bytes(chunk)));
    return hashes;
  }
  // Its bytes lie in the block as they were when they were hashed.
  static void ExpectIntact(const Snapshot& snapshot, const SnapshotBase& base) {
    ASSERT_EQ(base.chunks.size(), base.hashes.size());
    for (size_t i = 0; i < base.chunks.size(); ++i) {
      ASSERT_EQ(HashOf(snapshot.bytes(base.chunks[i])), base.hashes[i]) << "chunk " << i;
    }
  }

  LayoutCache cache_{kChunkBytes};
  std::unique_ptr<StagingArena> arena_ = std::make_unique<StagingArena>();
  ThreadPool pool_{2, "test"};
  StateBuilder builder_{1};
  std::vector<uint8_t>* tensor_;
  DeltaHistory history_;
};

TEST_F(DeltaHistoryTest, TheFirstHasNoBase) {
  const Snapshot first = Take();
  EXPECT_EQ(first.base, nullptr);
  EXPECT_EQ(first.records_offset, 0u);
  EXPECT_EQ(first.chunks.front().record_offset, 0u);
}

TEST_F(DeltaHistoryTest, LaterOnesLieInTheOtherHalfEachOverTheOneBefore) {
  const Snapshot first = Save(kWholeBytes);
  const std::vector<Hash128> hashes = HashesOf(first);
  std::set<uint64_t> offsets;
  for (int i = 0; i < 4; ++i) {
    const Snapshot later = Save(10);
    ASSERT_NE(later.base, nullptr);
    EXPECT_EQ(later.block, first.block);
    EXPECT_EQ(later.base->records_offset, 0u);
    EXPECT_EQ(later.base->hashes, hashes);
    ExpectIntact(later, *later.base);
    EXPECT_GE(later.chunks.front().record_offset, first.records_end());
    EXPECT_EQ(later.chunks.front().record_offset, later.records_offset);
    EXPECT_EQ(later.records_offset % kRecordAlignment, 0u);
    EXPECT_LE(later.records_end() + later.plan->envelope.size(), later.block->size());
    offsets.insert(later.records_offset);
  }
  EXPECT_EQ(offsets.size(), 1u);
}

TEST_F(DeltaHistoryTest, ANewBaseLeavesTheOldOneAloneUntilItIsCommitted) {
  Save(kWholeBytes);
  Save(10);
  const Snapshot large = Save(kWholeBytes);  // not worth it any more
  ASSERT_NE(large.base, nullptr);
  const std::shared_ptr<const SnapshotBase> old_base = large.base;
  builder_.Refill(tensor_);
  const Snapshot new_base = Take();
  EXPECT_EQ(new_base.base, nullptr);
  EXPECT_NE(new_base.records_offset, old_base->records_offset);
  ExpectIntact(new_base, *old_base);
  Commit(new_base, kWholeBytes);

  const Snapshot next = Save(10);
  ASSERT_NE(next.base, nullptr);
  EXPECT_EQ(next.base->records_offset, new_base.records_offset);
  EXPECT_EQ(next.records_offset, 0u);
  EXPECT_LE(next.records_end(), new_base.records_offset);
  EXPECT_EQ(next.base->hashes, HashesOf(new_base));
}

TEST_F(DeltaHistoryTest, ABaseIsTakenWhenASaveTookMoreThanTheMean) {
  Save(kWholeBytes);
  // The mean of 1000, 200, 300 is 500.
  for (const uint64_t bytes : {200, 300, 450}) EXPECT_NE(Save(bytes).base, nullptr) << bytes;
  // 1000, 200, 300, 450 have one of 487; with 600 it is 510.
  EXPECT_NE(Save(600).base, nullptr);
  EXPECT_EQ(Save(kWholeBytes).base, nullptr);
  EXPECT_NE(Save(100).base, nullptr) << "what was before the base does not count";
  EXPECT_NE(Save(100).base, nullptr);
}

TEST_F(DeltaHistoryTest, ABaseAloneIsNotReplaced) {
  Save(kWholeBytes);
  EXPECT_NE(Take().base, nullptr);
}

// The server may have lost the base.
TEST_F(DeltaHistoryTest, WhatWasStoredWholeIsABase) {
  Save(kWholeBytes);
  Save(10);
  builder_.Refill(tensor_);
  const Snapshot whole = Take();
  ASSERT_NE(whole.base, nullptr);
  history_.Committed(whole, /*is_delta=*/false, kWholeBytes, HashesOf(whole));
  const Snapshot next = Take();
  ASSERT_NE(next.base, nullptr);
  EXPECT_EQ(next.base->records_offset, whole.records_offset);
  EXPECT_EQ(next.records_offset, 0u);
  ExpectIntact(next, *next.base);
}

TEST_F(DeltaHistoryTest, AFailedSaveChangesNothing) {
  Save(kWholeBytes);
  const Snapshot second = Save(10);
  builder_.Refill(tensor_);
  for (int i = 0; i < 3; ++i) {
    const Snapshot failed = Take();
    EXPECT_EQ(failed.base, second.base);
    EXPECT_EQ(failed.records_offset, second.records_offset);
  }
  // Nor does one that was to be a base.
  Save(kWholeBytes);
  for (int i = 0; i < 3; ++i) {
    builder_.Refill(tensor_);
    const Snapshot failed = Take();
    EXPECT_EQ(failed.base, nullptr);
    EXPECT_EQ(failed.records_offset, second.records_offset);
    ExpectIntact(failed, *second.base);
  }
}

TEST_F(DeltaHistoryTest, AnotherLayoutGetsNoBaseAndIsTheNext) {
  Save(kWholeBytes);
  StateBuilder other(2);
  other.Add(WholeTensor("w", ElementType::kBF16, {20'000}));
  const Snapshot changed = TakeOf(other.state());
  EXPECT_EQ(changed.base, nullptr);
  EXPECT_NE(changed.records_offset, 0u) << "should it fail, the old base is still there";
  Commit(changed, kWholeBytes);
  const Snapshot next = TakeOf(other.state());
  ASSERT_NE(next.base, nullptr);
  EXPECT_EQ(next.base->records_offset, changed.records_offset);
  EXPECT_EQ(next.records_offset, 0u);
}

TEST_F(DeltaHistoryTest, ItemsMayHaveAnotherLength) {
  Save(kWholeBytes);
  const Snapshot longer = Take(3 * kChunkBytes);
  ASSERT_NE(longer.base, nullptr);
  EXPECT_GT(longer.chunks.size(), longer.base->chunks.size());
  ExpectIntact(longer, *longer.base);
}

TEST_F(DeltaHistoryTest, AnotherBlockHasNoBase) {
  const Snapshot first = Save(kWholeBytes);
  // A state that has outgrown the block: its layout is the same.
  const Snapshot grown = Take(2 * first.block->size());
  EXPECT_NE(grown.block, first.block);
  EXPECT_EQ(grown.base, nullptr);
  EXPECT_EQ(grown.records_offset, 0u);
  Commit(grown, kWholeBytes);
  EXPECT_NE(Take().base, nullptr);
}

// The weak reference must not take a new block at an old one's address for the old one.
TEST_F(DeltaHistoryTest, ABlockThatIsGoneHasNoBase) {
  Save(kWholeBytes);
  arena_ = std::make_unique<StagingArena>();
  const Snapshot next = Take();
  EXPECT_EQ(next.base, nullptr);
  EXPECT_EQ(next.records_offset, 0u);
}

TEST_F(DeltaHistoryTest, AnEmptyStateMayBeABase) {
  const Snapshot first = TakeOf(State());
  Commit(first, 0);
  const Snapshot second = TakeOf(State());
  ASSERT_NE(second.base, nullptr);
  EXPECT_TRUE(second.base->chunks.empty());
  EXPECT_LE(second.records_end() + second.plan->envelope.size(), second.block->size());
}

}  // namespace
}  // namespace esker::testing
