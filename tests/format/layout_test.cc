#include "format/layout.h"

#include <algorithm>
#include <random>

#include "format/envelope.h"
#include "tests/format/tensor_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using ::testing::ElementsAre;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ShardSpec Whole(std::string name, DType dtype, std::vector<uint64_t> shape) {
  return {std::move(name), dtype, shape, WholeBox(shape)};
}

v1::Layout Build(const std::vector<ShardSpec>& shards, uint64_t chunk_bytes,
                 const std::vector<std::string>& items = {}) {
  absl::StatusOr<v1::Layout> layout = BuildLayout(shards, items, chunk_bytes);
  EXPECT_OK(layout);
  EXPECT_OK(ValidateLayout(*layout));
  return *std::move(layout);
}

// A part of this layout whose items have these lengths.
v1::Part PartOf(const v1::Layout& layout, const std::vector<uint64_t>& item_bytes, uint64_t chunk_bytes) {
  v1::Part part;
  part.set_layout_digest(std::string(16, 'd'));
  uint64_t items = 0;
  for (const uint64_t bytes : item_bytes) {
    part.add_item_bytes(bytes);
    items += bytes;
  }
  for (const uint64_t bytes : CutItemChunks(items, chunk_bytes)) part.add_item_chunk_raw_bytes(bytes);
  uint64_t tensors = 0;
  for (const uint64_t bytes : layout.chunk_raw_bytes()) tensors += bytes;
  part.set_raw_bytes(tensors + items);
  const int chunks = layout.chunk_raw_bytes_size() + part.item_chunk_raw_bytes_size();
  for (int i = 0; i < chunks; ++i)
    part.mutable_chunk_hashes()->append(HashOf(AsBytes(std::to_string(i))).AsText());
  return part;
}

TEST(BuildLayout, SmallShardsShareAChunkAndLargeOnesHaveTheirOwn) {
  const v1::Layout layout = Build({Whole("a.norm", DType::kU8, {30}), Whole("b.weight", DType::kU8, {250}),
                                   Whole("c.norm", DType::kU8, {30}), Whole("d.weight", DType::kU8, {120})},
                                  100);
  EXPECT_THAT(layout.chunk_raw_bytes(), ElementsAre(100, 100, 50, 100, 20, 60));
  EXPECT_EQ(layout.shards(0).part_offset(), 370u);  // a.norm
  EXPECT_EQ(layout.shards(1).part_offset(), 0u);    // b.weight
  EXPECT_EQ(layout.shards(2).part_offset(), 400u);  // c.norm
  EXPECT_EQ(layout.shards(3).part_offset(), 250u);  // d.weight
}

TEST(BuildLayout, AnotherSizeOfOneTensorMovesNoChunkOfALargeOne) {
  const auto chunks_of = [](uint64_t a_bytes) {
    return Build({Whole("a", DType::kU8, {a_bytes}), Whole("z", DType::kU8, {300})}, 100);
  };
  EXPECT_THAT(chunks_of(250).chunk_raw_bytes(), ElementsAre(100, 100, 50, 100, 100, 100));
  EXPECT_THAT(chunks_of(251).chunk_raw_bytes(), ElementsAre(100, 100, 51, 100, 100, 100));
}

TEST(BuildLayout, AChunkHoldsOneDtypeInWholeElements) {
  const v1::Layout layout =
      Build({Whole("a", DType::kF32, {10}), Whole("b", DType::kU8, {3}), Whole("c", DType::kC128, {3})}, 33);
  EXPECT_THAT(layout.chunk_dtype(), ElementsAre(2, 12, 12, 20, 20));
  EXPECT_THAT(layout.chunk_raw_bytes(), ElementsAre(3, 32, 8, 32, 16));
}

TEST(BuildLayout, ScalarsAndEmptyShards) {
  const v1::Layout layout =
      Build({Whole("empty", DType::kF32, {0, 7}), Whole("scalar", DType::kF64, {})}, 4096);
  EXPECT_THAT(layout.chunk_raw_bytes(), ElementsAre(8));
  EXPECT_EQ(layout.shards(0).name(), "empty");
  EXPECT_EQ(layout.shards(0).part_offset(), 0u);
  EXPECT_EQ(layout.shards(1).part_offset(), 0u);
}

TEST(BuildLayout, NothingAtAllIsLegal) {
  const v1::Layout layout = Build({}, 4096);
  EXPECT_EQ(layout.chunk_raw_bytes_size(), 0);
  EXPECT_OK(ValidatePart(PartOf(layout, {}, 4096), layout));
}

TEST(BuildLayout, DoesNotDependOnTheOrderGiven) {
  const uint64_t seed = testing::TestSeed();
  std::mt19937_64 random(seed);
  std::vector<ShardSpec> shards;
  for (int i = 0; i < 40; ++i) {
    const auto dtype = DTypeFromNumber(random() % kDTypeCount).value();
    const std::vector<uint64_t> shape = {4, 1 + random() % 300};
    shards.push_back({"t" + std::to_string(i), dtype, shape, {{0, 0}, {2, shape[1]}}});
    shards.push_back({"t" + std::to_string(i), dtype, shape, {{2, 0}, {2, shape[1]}}});
  }
  std::vector<std::string> items = {"rng", "loader", "a"};
  const std::string first = SerializeDeterministic(Build(shards, 1000, items));
  for (int round = 0; round < 10; ++round) {
    std::shuffle(shards.begin(), shards.end(), random);
    std::shuffle(items.begin(), items.end(), random);
    EXPECT_EQ(SerializeDeterministic(Build(shards, 1000, items)), first);
  }
}

TEST(BuildLayout, RefusesBadInput) {
  const auto refused = [](const std::vector<ShardSpec>& shards, std::string_view text) {
    EXPECT_STATUS(BuildLayout(shards, {}, 4096), kInvalid, std::string(text));
  };
  refused({Whole("", DType::kU8, {1})}, "1 to 4096");
  refused({Whole("bad\xff", DType::kU8, {1})}, "UTF-8");
  refused({{"t", DType::kU8, {4}, {{2}, {3}}}}, "outside the tensor");
  refused({{"t", DType::kU8, {4, 4}, {{0, 0}, {2, 4}}}, {"t", DType::kU8, {4, 4}, {{0, 0}, {1, 4}}}},
          "given twice");
  refused({{"t", DType::kU8, {4}, {{0}, {2}}}, {"t", DType::kU8, {5}, {{2}, {2}}}}, "different dtypes");
  refused({{"t", DType::kU8, {4}, {{0}, {2}}}, {"t", DType::kI8, {4}, {{2}, {2}}}}, "different dtypes");
  refused({{"t", DType::kU8, {4}, {{0}, {3}}}, {"t", DType::kU8, {4}, {{2}, {2}}}}, "overlaps");
  refused({Whole("t", DType::kU8, {uint64_t{1} << 62})}, "more than 16777216 chunks");
  refused({Whole("t", DType::kU8, {uint64_t{1} << 62}), Whole("u", DType::kU8, {uint64_t{1} << 62}),
           Whole("v", DType::kU8, {uint64_t{1} << 62})},
          "more than 16777216 chunks");
  EXPECT_STATUS(BuildLayout({}, {"rng", "rng"}, 4096), kInvalid, "given twice");
  EXPECT_STATUS(BuildLayout({}, {std::string("a\0", 2)}, 4096), kInvalid, "NUL");
  EXPECT_STATUS(BuildLayout({}, {}, 0), kInvalid, "found 0");
  EXPECT_STATUS(BuildLayout({}, {}, kMaxChunkBytes + 1), kInvalid, "16 to 4194304");
}

// Against a comparison of all pairs, on grids with and without a box that overlaps, and on interlocked boxes.
TEST(BuildLayout, FindsEveryOverlapOfBoxes) {
  std::mt19937_64 random(testing::TestSeed());
  int overlapping = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto shape = testing::RandomShape(&random, 1 + random() % 4, 8);
    std::vector<ShardSpec> shards;
    for (uint64_t count = 2 + random() % 4; count > 0; --count) {
      ShardSpec spec = {"t", DType::kU8, shape, testing::RandomBox(&random, shape)};
      const bool same_offset = std::any_of(shards.begin(), shards.end(), [&](const ShardSpec& other) {
        return other.box.offset == spec.box.offset;
      });
      if (!same_offset) shards.push_back(std::move(spec));
    }
    bool expected = false;
    for (size_t i = 0; i < shards.size(); ++i) {
      for (size_t j = 0; j < i; ++j) expected |= Intersect(shards[i].box, shards[j].box).has_value();
    }
    overlapping += expected;
    const absl::Status status = BuildLayout(shards, {}, 4096).status();
    EXPECT_EQ(status.code(), expected ? kInvalid : absl::StatusCode::kOk) << status;
  }
  EXPECT_GT(overlapping, 100);
  EXPECT_LT(overlapping, 2900);
}

// Four boxes around a fifth: no plane divides them.
TEST(BuildLayout, InterlockedBoxesThatDoNotOverlapAreLegal) {
  const std::vector<uint64_t> shape = {3, 3};
  std::vector<ShardSpec> pinwheel;
  for (const Box& box : {Box{{0, 0}, {1, 2}}, Box{{0, 2}, {2, 1}}, Box{{2, 1}, {1, 2}}, Box{{1, 0}, {2, 1}},
                         Box{{1, 1}, {1, 1}}}) {
    pinwheel.push_back({"t", DType::kU8, shape, box});
  }
  EXPECT_EQ(Build(pinwheel, 4096).chunk_raw_bytes(0), 9u);
  pinwheel[3].box = {{1, 0}, {2, 2}};
  EXPECT_STATUS(BuildLayout(pinwheel, {}, 4096), kInvalid, "overlaps");
}

// Compared in pairs, these 160,000 would take minutes.
TEST(BuildLayout, AGridOfManyShardsIsNotComparedInPairs) {
  std::vector<ShardSpec> shards;
  for (uint64_t i = 0; i < 400; ++i) {
    for (uint64_t j = 0; j < 400; ++j) shards.push_back({"t", DType::kU8, {400, 400}, {{i, j}, {1, 1}}});
  }
  EXPECT_EQ(Build(shards, 4096).shards_size(), 160000);
}

// Refused with `text` after `change` was made to a good layout.
void ExpectRefused(const std::function<void(v1::Layout*)>& change, std::string_view text) {
  v1::Layout layout =
      Build({Whole("a", DType::kF32, {10}), Whole("b", DType::kF32, {3, 10}), Whole("c", DType::kU8, {7})},
            64, {"i", "j"});
  change(&layout);
  EXPECT_STATUS(ValidateLayout(layout), kInvalid, std::string(text));
}

TEST(ValidateLayout, RefusesBadChunks) {
  ExpectRefused([](v1::Layout* l) { l->add_chunk_dtype(1); }, "chunk dtypes");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_dtype(0, 21); }, "dtype number 21");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_dtype(0, ~uint32_t{0}); }, "dtype number");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_raw_bytes(0, 0); }, "chunk 0");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_raw_bytes(0, kMaxChunkBytes + 1); }, "chunk 0");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_raw_bytes(0, ~uint64_t{0}); }, "chunk 0");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_raw_bytes(1, 63); }, "whole F32 elements");
}

TEST(ValidateLayout, RefusesBadShards) {
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_name(""); }, "shard 0");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_dtype(77); }, "dtype number 77");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_extent(0, 11); }, "outside the tensor");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->add_extent(1); }, "2 extents");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_shape(0, uint64_t{1} << 62); }, "2^63");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards()->SwapElements(0, 1); }, "order of their names");
  ExpectRefused([](v1::Layout* l) { *l->mutable_shards(1) = l->shards(0); }, "each offset once");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(1)->set_name("a"); },
                "differs from the shard's before it");
  ExpectRefused(
      [](v1::Layout* l) {
        l->mutable_shards(2)->set_extent(0, 0);
        l->mutable_shards(2)->set_part_offset(4);
      },
      "it is empty");
}

TEST(ValidateLayout, RefusesBadPlaces) {
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_part_offset(~uint64_t{0}); },
                "not inside the chunks");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_part_offset(l->shards(0).part_offset() + 4); },
                "not inside the chunks");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(0)->set_part_offset(l->shards(1).part_offset()); },
                "overlap");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(1)->set_part_offset(l->shards(1).part_offset() + 1); },
                "inside an element");
  ExpectRefused([](v1::Layout* l) { l->mutable_shards(2)->set_dtype(static_cast<uint32_t>(DType::kI8)); },
                "where it lies");
  ExpectRefused([](v1::Layout* l) { l->set_chunk_dtype(2, static_cast<uint32_t>(DType::kI32)); },
                "where it lies");
}

TEST(ValidateLayout, RefusesBadItems) {
  ExpectRefused([](v1::Layout* l) { l->set_item_names(0, "j"); }, "each once");
  ExpectRefused([](v1::Layout* l) { l->set_item_names(0, "k"); }, "item 1");
  ExpectRefused([](v1::Layout* l) { l->set_item_names(0, ""); }, "item 0");
}

// Bytes that are no shard's may stand between and behind the shards: a later version may align them.
TEST(ValidateLayout, GapsAreLegal) {
  v1::Layout layout = Build({Whole("a", DType::kU8, {10}), Whole("b", DType::kU8, {10})}, 64);
  layout.set_chunk_raw_bytes(0, 64);
  layout.mutable_shards(1)->set_part_offset(40);
  EXPECT_OK(ValidateLayout(layout));
  layout.add_chunk_raw_bytes(8);
  layout.add_chunk_dtype(static_cast<uint32_t>(DType::kF64));
  EXPECT_OK(ValidateLayout(layout));
}

// Whatever a layout says, checking it neither crashes nor takes long, and what passes can be read: random
// changes of random fields, to numbers that are likely to hurt.
TEST(ValidateLayout, SurvivesHostileNumbers) {
  std::mt19937_64 random(testing::TestSeed());
  const uint64_t nasty[] = {0,
                            1,
                            3,
                            4,
                            64,
                            100,
                            kMaxChunkBytes,
                            uint64_t{1} << 31,
                            uint64_t{1} << 32,
                            uint64_t{1} << 62,
                            uint64_t{1} << 63,
                            ~uint64_t{0}};
  const v1::Layout good = Build({Whole("a", DType::kF32, {10}), Whole("b", DType::kF32, {3, 10}),
                                 Whole("c", DType::kU8, {0, 7}), Whole("d", DType::kBF16, {})},
                                64, {"i"});
  int legal = 0;
  for (int round = 0; round < 30000; ++round) {
    v1::Layout layout = good;
    for (uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      const uint64_t number = nasty[random() % std::size(nasty)];
      v1::Shard* shard = layout.mutable_shards(static_cast<int>(random() % 4));
      switch (random() % 7) {
        case 0:
          layout.set_chunk_raw_bytes(static_cast<int>(random() % layout.chunk_raw_bytes_size()), number);
          break;
        case 1:
          layout.set_chunk_dtype(static_cast<int>(random() % layout.chunk_dtype_size()),
                                 static_cast<uint32_t>(number));
          break;
        case 2:
          shard->set_part_offset(number);
          break;
        case 3:
          if (shard->shape_size() > 0) shard->set_shape(0, number);
          break;
        case 4:
          if (shard->offset_size() > 0) shard->set_offset(0, number);
          break;
        case 5:
          if (shard->extent_size() > 0) shard->set_extent(0, number);
          break;
        default:
          shard->set_dtype(static_cast<uint32_t>(number));
          break;
      }
    }
    const absl::Status status = ValidateLayout(layout);
    EXPECT_TRUE(status.ok() || status.code() == kInvalid) << status;
    if (!status.ok()) continue;
    ++legal;
    const v1::Part part = PartOf(layout, {5}, 64);
    EXPECT_OK(ValidatePart(part, layout));
    EXPECT_EQ(PartMap(part, layout).items()[0].bytes, 5u);
  }
  EXPECT_GT(legal, 0);
}

// Sorted and swept: 300,000 shards that lie all over each other would take minutes in pairs.
TEST(ValidateLayout, ManyShardsAreNotComparedInPairs) {
  v1::Layout layout;
  for (int i = 0; i < 300000; ++i) {
    v1::Shard* shard = layout.add_shards();
    shard->set_name("t");
    shard->set_dtype(static_cast<uint32_t>(DType::kU8));
    shard->add_shape(300000);
    shard->add_offset(static_cast<uint64_t>(i));
    shard->add_extent(1);
    shard->set_part_offset(static_cast<uint64_t>(299999 - i));
  }
  layout.add_chunk_raw_bytes(300000);
  layout.add_chunk_dtype(static_cast<uint32_t>(DType::kU8));
  EXPECT_OK(ValidateLayout(layout));
  layout.mutable_shards(0)->set_part_offset(0);
  EXPECT_STATUS(ValidateLayout(layout), kInvalid, "overlap");
}

TEST(ValidatePart, AcceptsWhatFits) {
  const v1::Layout layout = Build({Whole("a", DType::kF32, {100})}, 64, {"x", "y", "z"});
  EXPECT_OK(ValidatePart(PartOf(layout, {0, 100, 37}, 64), layout));
}

TEST(ValidatePart, RefusesWhatDoesNot) {
  const v1::Layout layout = Build({Whole("a", DType::kF32, {100})}, 64, {"x", "y"});
  const auto refused = [&](const std::function<void(v1::Part*)>& change, std::string_view text) {
    v1::Part part = PartOf(layout, {70, 30}, 64);
    change(&part);
    EXPECT_STATUS(ValidatePart(part, layout), kInvalid, std::string(text));
  };
  refused([](v1::Part* p) { p->set_layout_digest("short"); }, "layout_digest");
  refused([](v1::Part* p) { p->add_item_bytes(0); }, "2 items, found 3");
  refused([](v1::Part* p) { p->set_item_bytes(0, 71); }, "its items have 101");
  refused([](v1::Part* p) { p->set_item_bytes(0, ~uint64_t{0}); }, "2^63 or more");
  refused(
      [](v1::Part* p) {
        p->set_item_bytes(0, uint64_t{1} << 62);
        p->set_item_bytes(1, uint64_t{1} << 62);
      },
      "2^63 or more");
  refused([](v1::Part* p) { p->set_item_chunk_raw_bytes(0, 0); }, "item chunk 0");
  refused([](v1::Part* p) { p->set_item_chunk_raw_bytes(0, kMaxChunkBytes + 1); }, "item chunk 0");
  refused([](v1::Part* p) { p->set_raw_bytes(1); }, "says 1 raw bytes");
  refused([](v1::Part* p) { p->mutable_chunk_hashes()->pop_back(); }, "9 chunk hashes");
  refused([](v1::Part* p) { p->mutable_chunk_hashes()->append(std::string(16, 'h')); }, "9 chunk hashes");
}

TEST(CutItemChunks, PiecesSumUp) {
  EXPECT_THAT(CutItemChunks(0, 64), ElementsAre());
  EXPECT_THAT(CutItemChunks(64, 64), ElementsAre(64));
  EXPECT_THAT(CutItemChunks(130, 64), ElementsAre(64, 64, 2));
}

TEST(PartMap, FindsTheChunkOfEveryByte) {
  const v1::Layout layout =
      Build({Whole("a", DType::kF32, {25}), Whole("b", DType::kU8, {7})}, 64, {"x", "y"});
  const v1::Part part = PartOf(layout, {70, 30}, 64);
  const PartMap map(part, layout);
  ASSERT_EQ(map.chunks().size(), 5u);
  size_t chunk = 0;
  for (uint64_t at = 0; at < part.raw_bytes(); ++at) {
    if (at == map.chunks()[chunk].part_offset + map.chunks()[chunk].raw_bytes) ++chunk;
    EXPECT_EQ(map.ChunkAt(at), chunk);
  }
  EXPECT_EQ(map.chunks()[0].dtype, DType::kU8);
  EXPECT_EQ(map.chunks()[1].dtype, DType::kF32);
  EXPECT_EQ(map.chunks()[3].dtype, DType::kBytes);
  EXPECT_EQ(map.chunks()[3].hash, HashOf(AsBytes("3")));
  ASSERT_EQ(map.items().size(), 2u);
  EXPECT_EQ(map.items()[0].name, "x");
  EXPECT_EQ(map.items()[0].part_offset, 107u);
  EXPECT_EQ(map.items()[1].part_offset, 177u);
  EXPECT_EQ(map.items()[1].bytes, 30u);
}

TEST(PartMapDeathTest, AByteBehindThePartIsAProgrammersError) {
  const v1::Layout layout = Build({Whole("b", DType::kU8, {7})}, 64);
  const PartMap map(PartOf(layout, {}, 64), layout);
  EXPECT_DEATH((void)map.ChunkAt(7), "check failed");
}

}  // namespace
}  // namespace esker
