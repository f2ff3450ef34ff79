#include "client/snapshot.h"

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
    return TakeSnapshot(state, std::move(plan), &arena_, &pool_);
  }

  LayoutCache cache_{kChunkBytes};
  StagingArena arena_;
  ThreadPool pool_{2, "test"};
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
  for (size_t i = 0; i < builder.state().tensors.size(); ++i) {
    const TensorBox& box = builder.state().tensors[i].box;
    for (const v1::Shard& shard : layout.shards()) {
      if (shard.name() != box.name ||
          !std::equal(box.offset.begin(), box.offset.end(), shard.offset().begin()))
        continue;
      EXPECT_TRUE(Equal(snapshot.block->data() + shard.part_offset(), builder.data(i))) << box.name;
    }
  }
  uint64_t end = 0;
  for (const SnapshotChunk& chunk : snapshot.chunks) {
    EXPECT_EQ(chunk.offset, end);
    end += chunk.bytes;
  }
  EXPECT_EQ(end, snapshot.raw_bytes);
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
  const std::string all(reinterpret_cast<const char*>(snapshot.block->data()) + 10, 5002);
  EXPECT_EQ(all, "aa" + std::string(5000, 'b'));
  EXPECT_EQ(snapshot.chunks.size(), 3u);
  EXPECT_EQ(snapshot.chunks[2].dtype, DType::kBytes);
}

TEST_F(SnapshotTest, OfNothingIsEmpty) {
  ASSERT_OK_AND_ASSIGN(const Snapshot snapshot, Take(State()));
  EXPECT_EQ(snapshot.raw_bytes, 0u);
  EXPECT_TRUE(snapshot.chunks.empty());
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
  for (size_t i = 0; i < 3000; ++i) {
    ASSERT_TRUE(Equal(snapshot.block->data() + snapshot.plan->tensor_offsets[i], builder.data(i)));
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
  EXPECT_STATUS(TakeSnapshot(State(), plan, &arena_, &pool_), absl::StatusCode::kInvalidArgument,
                "larger chunks");
}

}  // namespace
}  // namespace esker::testing
