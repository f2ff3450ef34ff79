#include "client/snapshot.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "format/envelope.h"
#include "format/layout.h"
#include "tests/client/state_builder.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

constexpr uint64_t kChunkBytes = 4096;

bool Equal(const std::byte* bytes, const std::vector<uint8_t>& data) {
  return data.empty() || std::memcmp(bytes, data.data(), data.size()) == 0;
}

class SnapshotTest : public ::testing::Test {
 protected:
  absl::StatusOr<Snapshot> Take(const State& state) {
    ESKER_ASSIGN_OR_RETURN(auto plan, cache_.Get(state));
    ESKER_ASSIGN_OR_RETURN(Snapshot snapshot, PrepareSnapshot(state, std::move(plan), &arena_));
    ready_.clear();
    CopyState(state, snapshot, &pool_, [this](size_t chunks) { ready_.push_back(chunks); });
    return snapshot;
  }

  // The part's bytes, out of the records that they lie in.
  static std::vector<std::byte> PartBytes(const Snapshot& snapshot) {
    std::vector<std::byte> part;
    for (const SnapshotChunk& chunk : snapshot.chunks) {
      const ByteView bytes = snapshot.bytes(chunk);
      part.insert(part.end(), bytes.begin(), bytes.end());
    }
    return part;
  }

  LayoutCache cache_{kChunkBytes};
  StagingArena arena_;
  ThreadPool pool_{2, "test"};
  std::vector<size_t> ready_;  // what was said to be ready of the last snapshot
};

TEST_F(SnapshotTest, HasEveryTensorWhereTheLayoutSays) {
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("z", ElementType::kF32, {5000}));
  builder.Add(WholeTensor("a", ElementType::kU8, {3}));
  TensorBox second_box = WholeTensor("z2", ElementType::kF32, {10, 4});
  second_box.offset = {5, 0};
  second_box.extent = {5, 4};
  builder.Add(second_box);
  TensorBox first_box = second_box;
  first_box.offset = {0, 0};
  builder.Add(first_box);
  builder.Add(WholeTensor("empty", ElementType::kC128, {0, 7}));
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(builder.state()));
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout,
                       DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, snapshot.plan->envelope));
  ASSERT_OK(ValidateLayout(layout));
  const std::vector<std::byte> part = PartBytes(snapshot);
  for (size_t i = 0; i < builder.state().tensors.size(); ++i) {
    const TensorBox& box = builder.state().tensors[i].box;
    for (const v1::Shard& shard : layout.shards()) {
      if (shard.name() != box.name ||
          !std::equal(box.offset.begin(), box.offset.end(), shard.offset().begin()))
        continue;
      EXPECT_TRUE(Equal(part.data() + shard.part_offset(), builder.data(i))) << box.name;
    }
  }
  EXPECT_EQ(part.size(), snapshot.raw_bytes);
}

TEST_F(SnapshotTest, LaysItsChunksOutAsRecords) {
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {2 * kChunkBytes + 1}));
  builder.AddItem("i", "x");
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(builder.state()));
  uint64_t part_end = 0;
  uint64_t record_end = 0;
  for (const SnapshotChunk& chunk : snapshot.chunks) {
    EXPECT_EQ(chunk.part_offset, part_end);
    EXPECT_EQ(chunk.record_offset, record_end);
    EXPECT_EQ(chunk.block_offset(), record_end + PayloadOffset(chunk.bytes));
    part_end += chunk.bytes;
    record_end += RecordBytes(chunk.bytes);
  }
  EXPECT_EQ(snapshot.records_end(), record_end);
  EXPECT_LE(record_end + snapshot.plan->envelope.size(), snapshot.block->size());
  EXPECT_GE(StagingBytesFor(snapshot.raw_bytes, kChunkBytes), record_end);
}

TEST_F(SnapshotTest, SaysHowFarItIsInOrder) {
  StateBuilder builder(TestSeed());
  for (int i = 0; i < 40; ++i) {
    builder.Add(WholeTensor("t" + std::to_string(40 - i), ElementType::kF32, {uint64_t(1) << 20}));
  }
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(builder.state()));
  ASSERT_FALSE(ready_.empty());
  EXPECT_GT(ready_.size(), 10u);
  EXPECT_LE(ready_.size(), kReadySteps);
  EXPECT_TRUE(std::is_sorted(ready_.begin(), ready_.end()));
  EXPECT_EQ(ready_.back(), snapshot.chunks.size());
}

TEST_F(SnapshotTest, WhatIsSaidToBeReadyIsCopied) {
  StateBuilder builder(TestSeed());
  for (int i = 0; i < 6; ++i) {
    builder.Add(WholeTensor("t" + std::to_string(i), ElementType::kU8, {(uint64_t{7} << 20) + 100}));
  }
  ASSERT_OK_AND_ASSIGN(const auto plan, cache_.Get(builder.state()));
  ASSERT_OK_AND_ASSIGN(const Snapshot whole, Take(builder.state()));
  const std::vector<std::byte> expected = PartBytes(whole);
  StagingArena other;
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, PrepareSnapshot(builder.state(), plan, &other));
  size_t checked = 0;
  CopyState(builder.state(), snapshot, &pool_, [&](size_t chunks) {
    for (; checked < chunks; ++checked) {
      const SnapshotChunk& chunk = snapshot.chunks[checked];
      const ByteView bytes = snapshot.bytes(chunk);
      ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(),
                             expected.begin() + static_cast<ptrdiff_t>(chunk.part_offset)));
    }
  });
  EXPECT_EQ(checked, snapshot.chunks.size());
}

TEST_F(SnapshotTest, HasItemsBehindTheTensorsByName) {
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {10}));
  builder.AddItem("b", std::string(5000, 'b'));
  builder.AddItem("a", "aa");
  builder.AddItem("c", "");
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(builder.state()));
  EXPECT_EQ(snapshot.item_bytes, (std::vector<uint64_t>{2, 5000, 0}));
  EXPECT_EQ(snapshot.raw_bytes, 10u + 5002u);
  const std::vector<std::byte> part = PartBytes(snapshot);
  const std::string all(reinterpret_cast<const char*>(part.data()) + 10, 5002);
  EXPECT_EQ(all, "aa" + std::string(5000, 'b'));
  EXPECT_EQ(snapshot.chunks.size(), 3u);
  EXPECT_EQ(snapshot.chunks[2].dtype, DType::kBytes);
}

TEST_F(SnapshotTest, OfNothingIsEmpty) {
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(State()));
  EXPECT_EQ(snapshot.raw_bytes, 0u);
  EXPECT_TRUE(snapshot.chunks.empty());
  EXPECT_EQ(ready_, std::vector<size_t>{0});
}

TEST_F(SnapshotTest, LayoutIsWorkedOutOncePerStructure) {
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {10}));
  builder.AddItem("i", "x");
  ASSERT_OK_AND_ASSIGN(const auto first, cache_.Get(builder.state()));
  builder.state().items[0].bytes = "longer than before";
  ASSERT_OK_AND_ASSIGN(const auto second, cache_.Get(builder.state()));
  EXPECT_EQ(first, second);
  builder.state().tensors[0].box.type = ElementType::kI8;
  ASSERT_OK_AND_ASSIGN(const auto third, cache_.Get(builder.state()));
  EXPECT_NE(first, third);
  EXPECT_NE(first->digest, third->digest);
  builder.state().items.clear();
  ASSERT_OK_AND_ASSIGN(const auto fourth, cache_.Get(builder.state()));
  EXPECT_NE(third, fourth);
}

TEST_F(SnapshotTest, ManySmallTensorsAreCopiedWhole) {
  StateBuilder builder(TestSeed());
  for (int i = 0; i < 3000; ++i)
    builder.Add(WholeTensor("t" + std::to_string(i), ElementType::kU8, {uint64_t(i % 7000)}));
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(builder.state()));
  const std::vector<std::byte> part = PartBytes(snapshot);
  for (size_t i = 0; i < 3000; ++i) {
    ASSERT_TRUE(Equal(part.data() + snapshot.plan->tensor_offsets[i], builder.data(i)));
  }
}

TEST_F(SnapshotTest, WrongStatesAreRefusedByName) {
  const auto error = [&](const std::vector<TensorBox>& boxes) {
    StateBuilder builder(1);
    for (const TensorBox& box : boxes) builder.Add(box);
    return Take(builder.state()).status();
  };
  const TensorBox good = WholeTensor("good", ElementType::kU8, {4});
  const auto named = [&](const std::string& name) { return WholeTensor(name, ElementType::kU8, {4}); };
  EXPECT_STATUS(error({good, named(std::string("a\0b", 3))}), absl::StatusCode::kInvalidArgument, "NUL");
  EXPECT_STATUS(error({good, named(std::string(10'000, 'n'))}), absl::StatusCode::kInvalidArgument,
                "10000 bytes");
  EXPECT_STATUS(error({good, named("\xff\xfe")}), absl::StatusCode::kInvalidArgument, "UTF-8");
  EXPECT_STATUS(error({good, good}), absl::StatusCode::kInvalidArgument, "\"good\"");
  TensorBox outside = good;
  outside.name = "outside";
  outside.offset = {1};
  EXPECT_STATUS(error({good, outside}), absl::StatusCode::kInvalidArgument, "\"outside\"");
  TensorBox overlapping = WholeTensor("lap", ElementType::kU8, {4});
  overlapping.extent = {3};
  TensorBox other = overlapping;
  other.offset = {1};
  EXPECT_STATUS(error({overlapping, other}), absl::StatusCode::kInvalidArgument, "\"lap\"");
  EXPECT_STATUS(error({good, WholeTensor("odd", static_cast<ElementType>(77), {})}),
                absl::StatusCode::kInvalidArgument, "\"odd\"");
}

TEST_F(SnapshotTest, NullDataIsRefusedUnlessThereIsNone) {
  State state;
  state.tensors.push_back({WholeTensor("none", ElementType::kU8, {0}), nullptr});
  EXPECT_OK(Take(state));
  state.tensors.push_back({WholeTensor("some", ElementType::kU8, {1}), nullptr});
  EXPECT_STATUS(Take(state), absl::StatusCode::kInvalidArgument, "\"some\"");
}

TEST_F(SnapshotTest, DuplicateItemsAreRefused) {
  StateBuilder builder(1);
  builder.AddItem("i", "x");
  builder.AddItem("i", "y");
  EXPECT_STATUS(Take(builder.state()), absl::StatusCode::kInvalidArgument, "\"i\"");
}

TEST_F(SnapshotTest, APartWithTooManyChunksIsRefusedBeforeItStarts) {
  // 17 GB in chunks of 4 KiB: their names alone do not fit into a request. No memory is touched for it.
  auto plan = std::make_shared<LayoutPlan>();
  plan->chunk_bytes = kChunkBytes;
  plan->chunks.resize(4'300'000);
  EXPECT_STATUS(PrepareSnapshot(State(), plan, &arena_), absl::StatusCode::kInvalidArgument, "larger chunks");
}

}  // namespace
}  // namespace esker::testing
