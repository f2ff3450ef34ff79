#include "format/shard_index.h"

#include <algorithm>
#include <random>
#include <set>
#include <thread>

#include "format/layout.h"
#include "tests/format/tensor_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::ForEachIndex;
using testing::Holds;
using testing::RandomBox;
using testing::RandomShape;
using testing::ValuesOf;

// Cuts [0, extent) at random, evenly or unevenly.
std::vector<uint64_t> RandomCuts(std::mt19937_64* random, uint64_t extent) {
  std::set<uint64_t> cuts = {0, extent};
  const uint64_t step = 1 + (*random)() % extent;
  if ((*random)() % 2 == 0) {
    for (uint64_t at = step; at < extent; at += step) cuts.insert(at);
  } else {
    for (uint64_t i = (*random)() % 4; i > 0; --i) cuts.insert((*random)() % extent);
  }
  return {cuts.begin(), cuts.end()};
}

// The boxes of a grid over the shape.
std::vector<Box> RandomGrid(std::mt19937_64* random, const std::vector<uint64_t>& shape) {
  std::vector<Box> boxes = {Box{}};
  for (const uint64_t extent : shape) {
    const std::vector<uint64_t> cuts = RandomCuts(random, extent);
    std::vector<Box> finer;
    for (const Box& box : boxes) {
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        finer.push_back(box);
        finer.back().offset.push_back(cuts[i]);
        finer.back().extent.push_back(cuts[i + 1] - cuts[i]);
      }
    }
    boxes = std::move(finer);
  }
  return boxes;
}

// A grid or a few random boxes, with replicas, further boxes that overlap, and holes: whatever could be
// stored.
std::vector<StoredShard> RandomShards(std::mt19937_64* random, const std::vector<uint64_t>& shape) {
  std::vector<Box> boxes;
  if ((*random)() % 4 != 0) boxes = RandomGrid(random, shape);
  if (boxes.empty() || (*random)() % 3 == 0) {
    for (uint64_t i = 1 + (*random)() % 5; i > 0; --i) boxes.push_back(RandomBox(random, shape));
  }
  if ((*random)() % 4 == 0) {
    std::erase_if(boxes, [&](const Box&) { return (*random)() % 5 == 0; });
  }
  std::vector<StoredShard> shards;
  const bool replicated = (*random)() % 2 == 0;
  for (const Box& box : boxes) {
    for (uint64_t copies = replicated ? 1 + (*random)() % 3 : 1; copies > 0; --copies) {
      StoredShard shard;
      shard.box = box;
      shard.rank = static_cast<uint32_t>((*random)() % 6);
      shards.push_back(shard);
    }
  }
  std::shuffle(shards.begin(), shards.end(), *random);
  // All ranks' bytes in one address space here, so that part_offset alone finds the values.
  uint64_t part_offset = 0;
  for (StoredShard& shard : shards) {
    shard.part_offset = part_offset;
    part_offset += shard.box.elements() * sizeof(uint32_t);
  }
  return shards;
}

class RandomCase {
 public:
  explicit RandomCase(std::mt19937_64* random)
      : shape(RandomShape(random, (*random)() % 5, 7)), stored(RandomShards(random, shape)) {
    for (const StoredShard& shard : stored) {
      for (const uint32_t value : ValuesOf(shape, shard.box)) memory.push_back(value);
    }
  }
  TensorShards Index() const { return TensorShards(DType::kU32, shape, stored); }
  bool IsHeld(const std::vector<uint64_t>& index) const {
    return std::any_of(stored.begin(), stored.end(),
                       [&](const StoredShard& s) { return Holds(s.box, index); });
  }
  bool IsHeldBy(const std::vector<uint64_t>& index, uint32_t rank) const {
    return std::any_of(stored.begin(), stored.end(),
                       [&](const StoredShard& s) { return s.rank == rank && Holds(s.box, index); });
  }

  const std::vector<uint64_t> shape;
  const std::vector<StoredShard> stored;
  std::vector<uint32_t> memory;  // the raw bytes of all parts
};

// Copies what was planned, run by run, into the bytes of `wanted`. Fails if an element comes twice.
std::vector<uint32_t> Fetch(const RandomCase& tensor, const Box& wanted,
                            const std::vector<PlannedRead>& reads) {
  constexpr uint32_t kNothing = 0xFFFFFFFF;
  std::vector<uint32_t> values(wanted.elements(), kNothing);
  for (const PlannedRead& read : reads) {
    ForEachRun(read.shard->box, wanted, read.box, sizeof(uint32_t), [&](const ByteRun& run) {
      for (uint64_t i = 0; i < run.bytes; i += sizeof(uint32_t)) {
        uint32_t* const to = &values.at((run.target_offset + i) / sizeof(uint32_t));
        EXPECT_EQ(*to, kNothing) << "an element was planned twice";
        *to = tensor.memory.at((read.shard->part_offset + run.source_offset + i) / sizeof(uint32_t));
      }
    });
  }
  return values;
}

TEST(TensorShards, OverlappingAgreesWithAScan) {
  std::mt19937_64 random(testing::TestSeed());
  for (int round = 0; round < 3000; ++round) {
    const RandomCase tensor(&random);
    const TensorShards index = tensor.Index();
    ASSERT_EQ(index.shards().size(), tensor.stored.size());
    for (int query = 0; query < 5; ++query) {
      const Box wanted = RandomBox(&random, tensor.shape);
      std::set<uint64_t> expected;
      size_t count = 0;
      for (const StoredShard& shard : tensor.stored) {
        if (!Intersect(shard.box, wanted).has_value()) continue;
        expected.insert(shard.part_offset);
        ++count;
      }
      const std::vector<const StoredShard*> overlapping = index.Overlapping(wanted);
      std::set<uint64_t> found;
      for (const StoredShard* shard : overlapping) found.insert(shard->part_offset);
      EXPECT_EQ(found, expected) << wanted.ToString();
      EXPECT_EQ(overlapping.size(), count);
    }
  }
}

// Every plan brings each element of the wanted box once, with the right value, from the preferred rank where
// it has it; and fails exactly if an element is stored nowhere.
TEST(TensorShards, PlansBringEveryElementOnce) {
  std::mt19937_64 random(testing::TestSeed());
  int whole = 0, with_holes = 0;
  for (int round = 0; round < 4000; ++round) {
    const RandomCase tensor(&random);
    const TensorShards index = tensor.Index();
    for (int query = 0; query < 4; ++query) {
      const Box wanted = query == 0 ? WholeBox(tensor.shape) : RandomBox(&random, tensor.shape);
      const auto preferred = static_cast<uint32_t>(random() % 8);
      bool complete = true;
      ForEachIndex(wanted, [&](const std::vector<uint64_t>& at) { complete &= tensor.IsHeld(at); });
      const absl::StatusOr<std::vector<PlannedRead>> reads = index.Plan(wanted, preferred);
      if (!complete) {
        EXPECT_STATUS(reads, absl::StatusCode::kDataLoss, "no stored shard holds");
        ++with_holes;
        continue;
      }
      ASSERT_OK(reads);
      ++whole;
      EXPECT_EQ(Fetch(tensor, wanted, *reads), ValuesOf(tensor.shape, wanted)) << wanted.ToString();
      for (const PlannedRead& read : *reads) {
        if (read.shard->rank == preferred) continue;
        ForEachIndex(read.box,
                     [&](const std::vector<uint64_t>& at) { EXPECT_FALSE(tensor.IsHeldBy(at, preferred)); });
      }
    }
  }
  EXPECT_GT(whole, 1000);
  EXPECT_GT(with_holes, 1000);
}

TEST(TensorShards, NamesWhatIsMissing) {
  const TensorShards index(DType::kU8, {4, 8}, {{{{0, 0}, {4, 3}}, 0, 0}, {{{0, 5}, {4, 3}}, 1, 0}});
  EXPECT_STATUS(index.Plan(WholeBox({4, 8}), 0), absl::StatusCode::kDataLoss,
                "no stored shard holds [0:4, 3:5] of [0:4, 0:8] (8 of 32 elements are missing)");
  EXPECT_OK(index.Plan({{1, 5}, {2, 2}}, 0));
}

TEST(TensorShards, RefusesABoxOutsideTheTensor) {
  const TensorShards index(DType::kU8, {4}, {{{{0}, {4}}, 0, 0}});
  EXPECT_STATUS(index.Plan({{2}, {3}}, 0), absl::StatusCode::kInvalidArgument, "outside the tensor");
  EXPECT_STATUS(index.Plan({{0, 0}, {1, 1}}, 0), absl::StatusCode::kInvalidArgument, "1 dimensions");
}

TEST(TensorShards, ATensorWithoutShardsHasOnlyItsEmptyBox) {
  const TensorShards index(DType::kU8, {4}, {});
  ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> nothing, index.Plan({{2}, {0}}, 0));
  EXPECT_TRUE(nothing.empty());
  EXPECT_STATUS(index.Plan({{2}, {1}}, 0), absl::StatusCode::kDataLoss, "[2:3]");
}

std::vector<StoredShard> Replicated(const Box& box, uint32_t ranks) {
  std::vector<StoredShard> shards;
  for (uint32_t rank = 0; rank < ranks; ++rank) shards.push_back({box, rank, 0});
  return shards;
}

TEST(TensorShards, TakesThePreferredRanksReplica) {
  const TensorShards index(DType::kU8, {4}, Replicated({{0}, {4}}, 8));
  for (uint32_t rank = 0; rank < 8; ++rank) {
    ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> reads, index.Plan({{1}, {2}}, rank));
    ASSERT_EQ(reads.size(), 1u);
    EXPECT_EQ(reads[0].shard->rank, rank);
  }
}

TEST(TensorShards, OtherReadersSpreadOverTheReplicas) {
  const TensorShards index(DType::kU8, {4}, Replicated({{0}, {4}}, 8));
  std::vector<int> reads_of(8);
  for (uint32_t rank = 100; rank < 180; ++rank) {
    ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> reads, index.Plan({{0}, {4}}, rank));
    ++reads_of[reads[0].shard->rank];
  }
  EXPECT_EQ(reads_of, std::vector<int>(8, 10));
}

TEST(TensorShards, AShardWithAllThatIsWantedIsReadAlone) {
  // Rank 9 holds the whole tensor, the others a row each.
  std::vector<StoredShard> shards = {{WholeBox({4, 4}), 9, 0}};
  for (uint32_t rank = 0; rank < 4; ++rank) shards.push_back({{{rank, 0}, {1, 4}}, rank, 0});
  const TensorShards index(DType::kU8, {4, 4}, shards);
  ASSERT_OK_AND_ASSIGN(std::vector<PlannedRead> reads, index.Plan(WholeBox({4, 4}), 77));
  ASSERT_EQ(reads.size(), 1u);
  EXPECT_EQ(reads[0].shard->rank, 9u);
  ASSERT_OK_AND_ASSIGN(reads, index.Plan(WholeBox({4, 4}),
                                         2));  // has its row itself, and takes the rest around it from rank 9
  ASSERT_EQ(reads.size(), 3u);
  EXPECT_EQ(reads[0].shard->rank, 2u);
  EXPECT_EQ(reads[1].shard->rank, 9u);
  EXPECT_EQ(reads[2].shard->rank, 9u);
}

// A million shards and 100,000 questions: scanned, that would be 10^11 comparisons of boxes, many times what
// ctest allows this binary. (The last of them wants everything, so that a plan's own cost can't be the square
// of its pieces either.)
TEST(TensorShards, AMillionShardsAreNotScanned) {
  constexpr uint64_t kSide = 1000;
  std::vector<StoredShard> shards;
  shards.reserve(kSide * kSide);
  for (uint64_t i = 0; i < kSide; ++i) {
    for (uint64_t j = 0; j < kSide; ++j) {
      shards.push_back({{{i * 4, j * 8}, {4, 8}}, static_cast<uint32_t>(i * kSide + j), 0});
    }
  }
  const std::vector<uint64_t> shape = {kSide * 4, kSide * 8};
  const TensorShards index(DType::kBF16, shape, std::move(shards));
  std::mt19937_64 random(testing::TestSeed());
  for (int query = 0; query < 100000; ++query) {
    const uint64_t i = random() % (kSide - 1), j = random() % (kSide - 1);
    // A box over the corner where four shards meet.
    ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> reads,
                         index.Plan({{i * 4 + 2, j * 8 + 4}, {4, 8}}, 0));
    ASSERT_EQ(reads.size(), 4u);
    ASSERT_EQ(reads[3].shard->rank, (i + 1) * kSide + j + 1);
  }
  ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> all, index.Plan(WholeBox(shape), 0));
  EXPECT_EQ(all.size(), kSide * kSide);
}

// Also where one is missing: the hole is found without comparing all with all.
TEST(TensorShards, OneHoleAmongManyShardsIsNamed) {
  constexpr uint64_t kSide = 300;
  std::vector<StoredShard> shards;
  for (uint64_t i = 0; i < kSide; ++i) {
    for (uint64_t j = 0; j < kSide; ++j) {
      if (i != 123 || j != 45) shards.push_back({{{i, j * 2}, {1, 2}}, 0, 0});
    }
  }
  const TensorShards index(DType::kBF16, {kSide, kSide * 2}, std::move(shards));
  EXPECT_STATUS(index.Plan(WholeBox({kSide, kSide * 2}), 0), absl::StatusCode::kDataLoss,
                "no stored shard holds [123:124, 90:92]");
}

// 100,000 replicas of one shard: a plan looks for its rank among them by halving.
TEST(TensorShards, ManyReplicasAreNotScanned) {
  constexpr uint32_t kRanks = 100000;
  const TensorShards index(DType::kF32, {16}, Replicated({{0}, {16}}, kRanks));
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> reads, index.Plan({{0}, {16}}, rank));
    ASSERT_EQ(reads[0].shard->rank, rank);
  }
}

TEST(TensorShards, ReadingIsThreadSafe) {
  std::mt19937_64 random(testing::TestSeed());
  const RandomCase tensor(&random);
  const TensorShards index = tensor.Index();
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) (void)index.Plan(WholeBox(tensor.shape), t).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

v1::Layout LayoutOf(const std::vector<ShardSpec>& shards) {
  absl::StatusOr<v1::Layout> layout = BuildLayout(shards, {}, 4096);
  EXPECT_OK(layout);
  return *std::move(layout);
}

TEST(ShardIndex, GathersTheRanksShards) {
  ShardIndex index;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    const ShardSpec rows = {"model/../w", DType::kBF16, {8, 4}, {{rank * 2, 0}, {2, 4}}};
    const ShardSpec scalar = {"step", DType::kI64, {}, {}};
    ASSERT_OK(index.Add(rank, LayoutOf({rows, scalar})));
  }
  index.Finish();
  EXPECT_EQ(index.TensorNames(), (std::vector<std::string>{"model/../w", "step"}));
  EXPECT_EQ(index.Find("nothing"), nullptr);
  const TensorShards* const weights = index.Find("model/../w");
  ASSERT_NE(weights, nullptr);
  EXPECT_EQ(weights->dtype(), DType::kBF16);
  EXPECT_EQ(weights->shape(), (std::vector<uint64_t>{8, 4}));
  ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> reads, weights->Plan({{3, 1}, {2, 2}}, 0));
  ASSERT_EQ(reads.size(), 2u);
  EXPECT_EQ(reads[0].shard->rank, 1u);
  EXPECT_EQ(reads[1].shard->rank, 2u);
  ASSERT_OK_AND_ASSIGN(const std::vector<PlannedRead> step, index.Find("step")->Plan({}, 3));
  ASSERT_EQ(step.size(), 1u);
  EXPECT_EQ(step[0].shard->rank, 3u);
}

TEST(ShardIndex, RanksThatContradictEachOtherAreNamed) {
  ShardIndex index;
  ASSERT_OK(index.Add(3, LayoutOf({{"w", DType::kBF16, {8}, {{0}, {4}}}})));
  EXPECT_STATUS(index.Add(5, LayoutOf({{"w", DType::kBF16, {9}, {{4}, {5}}}})), absl::StatusCode::kDataLoss,
                "rank 3 says BF16 of shape [8], rank 5 says BF16 of shape [9]");
  EXPECT_STATUS(index.Add(6, LayoutOf({{"w", DType::kF16, {8}, {{4}, {4}}}})), absl::StatusCode::kDataLoss,
                "rank 6 says F16");
}

}  // namespace
}  // namespace esker
