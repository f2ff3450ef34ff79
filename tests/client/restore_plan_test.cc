#include "client/restore_plan.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

std::vector<uint64_t> RandomShape(std::mt19937_64* random) {
  std::vector<uint64_t> shape((*random)() % 5);
  for (uint64_t& extent : shape) extent = 1 + (*random)() % 6;
  return shape;
}

Box RandomBox(const std::vector<uint64_t>& shape, std::mt19937_64* random) {
  Box box = WholeBox(shape);
  for (size_t d = 0; d < shape.size(); ++d) {
    box.offset[d] = (*random)() % shape[d];
    box.extent[d] = 1 + (*random)() % (shape[d] - box.offset[d]);
  }
  return box;
}

// The number of an element in row-major order.
uint64_t Linear(const Box& box, const std::vector<uint64_t>& at) {
  uint64_t index = 0;
  for (size_t d = 0; d < at.size(); ++d) index = index * box.extent[d] + (at[d] - box.offset[d]);
  return index;
}

void ForEachElement(const Box& box, const std::function<void(const std::vector<uint64_t>&)>& element) {
  std::vector<uint64_t> at = box.offset;
  for (uint64_t i = 0; i < box.elements(); ++i) {
    element(at);
    for (size_t d = at.size(); d-- > 0;) {
      if (++at[d] < box.offset[d] + box.extent[d]) break;
      at[d] = box.offset[d];
    }
  }
}

TEST(BoxesOfRange, AreExactlyTheRange) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 2000; ++round) {
    const std::vector<uint64_t> shape = RandomShape(&random);
    const Box box = RandomBox(shape, &random);
    const uint64_t first = random() % (box.elements() + 1);
    const uint64_t last = first + random() % (box.elements() + 1 - first);
    std::vector<uint64_t> found;
    const std::vector<Box> boxes = BoxesOfRange(box, first, last);
    for (const Box& part : boxes) {
      ForEachElement(part, [&](const std::vector<uint64_t>& at) { found.push_back(Linear(box, at)); });
    }
    std::vector<uint64_t> expected;
    for (uint64_t i = first; i < last; ++i) expected.push_back(i);
    ASSERT_EQ(found, expected) << box.ToString() << " " << first << " " << last;
    EXPECT_LE(boxes.size(), std::max<size_t>(1, 2 * box.rank()));
  }
}

// A part of one shard: chunks of `chunk_bytes` over random content.
struct TestPart {
  TestPart(const Box& box, uint64_t element_bytes, uint64_t chunk_bytes, std::mt19937_64* random) {
    content.resize(box.elements() * element_bytes);
    for (std::byte& b : content) b = static_cast<std::byte>((*random)());
    v1::Part part;
    v1::Layout layout;
    for (uint64_t at = 0; at < content.size(); at += chunk_bytes) {
      const uint64_t bytes = std::min<uint64_t>(chunk_bytes, content.size() - at);
      layout.add_chunk_raw_bytes(bytes);
      layout.add_chunk_dtype(static_cast<uint32_t>(DType::kU8));
      part.mutable_chunk_hashes()->append(HashOf(ByteView(content).subspan(at, bytes)).AsText());
    }
    map = std::make_unique<PartMap>(part, layout);
  }

  std::vector<std::byte> content;
  std::unique_ptr<PartMap> map;
};

// Cuts random boxes out of a random shard and compares with copying element by element.
TEST(RestorePlan, BringsEveryElementAndReadsNoOtherChunk) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 1000; ++round) {
    const uint64_t element_bytes = uint64_t{1} << (random() % 4);
    const std::vector<uint64_t> shape = RandomShape(&random);
    const Box stored = RandomBox(shape, &random);
    const Box wanted = RandomBox(shape, &random);
    const uint64_t chunk_bytes = element_bytes * (1 + random() % 20);
    const TestPart part(stored, element_bytes, chunk_bytes, &random);
    std::vector<std::byte> got(wanted.elements() * element_bytes);
    RestorePlan plan;
    RestoreTarget target;
    target.label = "tensor";
    target.box = wanted;
    target.element_bytes = element_bytes;
    target.data = got.data();
    const size_t number = plan.AddTarget(target);
    const std::optional<Box> common = Intersect(stored, wanted);
    if (common.has_value()) plan.AddPiece(number, *common, {stored, 0, 0}, *part.map);
    plan.Finish();

    std::vector<std::byte> expected(got.size());
    std::set<size_t> needed;
    if (common.has_value()) {
      ForEachElement(*common, [&](const std::vector<uint64_t>& at) {
        const uint64_t from = Linear(stored, at) * element_bytes;
        std::memcpy(expected.data() + Linear(wanted, at) * element_bytes, part.content.data() + from,
                    element_bytes);
        needed.insert(from / chunk_bytes);
      });
    }
    std::set<size_t> read;
    for (const RestoreChunk& chunk : plan.chunks()) {
      // Chunks of the same content are one, so the first that has it stands for all.
      read.insert(chunk.index);
      std::byte* const whole = plan.WholePlace(chunk);
      const std::byte* raw = part.content.data() + part.map->chunks()[chunk.index].part_offset;
      if (whole != nullptr) {
        std::memcpy(whole, raw, chunk.raw_bytes);
      } else {
        plan.ForEachRun(chunk, [&](uint64_t offset, std::byte* to, uint64_t bytes) {
          ASSERT_LE(offset + bytes, chunk.raw_bytes);
          ASSERT_GE(to, got.data());
          ASSERT_LE(to + bytes, got.data() + got.size());
          std::memcpy(to, raw + offset, bytes);
        });
      }
    }
    ASSERT_EQ(got, expected) << stored.ToString() << " " << wanted.ToString();
    EXPECT_TRUE(std::includes(needed.begin(), needed.end(), read.begin(), read.end()));
  }
}

TEST(RestorePlan, AChunkThatGoesToOnePlaceIsFound) {
  std::mt19937_64 random(1);
  const Box stored = {{0, 0}, {4, 8}};
  const TestPart part(stored, 1, 12, &random);  // a row and a half
  std::vector<std::byte> room(64);
  const auto whole_places = [&](const Box& wanted) {
    RestorePlan plan;
    const size_t number = plan.AddTarget({"t", wanted, 1, room.data()});
    plan.AddPiece(number, *Intersect(stored, wanted), {stored, 0, 0}, *part.map);
    plan.Finish();
    std::vector<ptrdiff_t> places;
    for (const RestoreChunk& chunk : plan.chunks()) {
      std::byte* const place = plan.WholePlace(chunk);
      places.push_back(place == nullptr ? -1 : place - room.data());
    }
    return places;
  };
  EXPECT_EQ(whole_places(stored), (std::vector<ptrdiff_t>{0, 12, 24}));
  EXPECT_EQ(whole_places({{0, 0}, {8, 8}}), (std::vector<ptrdiff_t>{0, 12, 24}));  // rows of a larger box
  EXPECT_EQ(whole_places({{1, 0}, {3, 8}}),
            (std::vector<ptrdiff_t>{-1, 4, 16}));  // the first row is not wanted
  EXPECT_EQ(whole_places({{0, 0}, {4, 7}}), (std::vector<ptrdiff_t>{-1, -1, -1}));
}

TEST(RestorePlan, SeveralTargetsShareAChunk) {
  std::mt19937_64 random(1);
  const Box stored = {{0}, {100}};
  const TestPart part(stored, 1, 10, &random);
  std::vector<std::byte> one(100);
  std::vector<std::byte> two(100);
  RestorePlan plan;
  plan.AddPiece(plan.AddTarget({"a", stored, 1, one.data()}), stored, {stored, 0, 0}, *part.map);
  plan.AddPiece(plan.AddTarget({"b", stored, 1, two.data()}), stored, {stored, 0, 0}, *part.map);
  plan.Finish();
  EXPECT_EQ(plan.chunks().size(), 10u);
  EXPECT_EQ(plan.total_bytes(), 200u);
  for (const RestoreChunk& chunk : plan.chunks()) {
    EXPECT_EQ(chunk.uses.size(), 2u);
    EXPECT_EQ(plan.WholePlace(chunk), nullptr);
  }
}

}  // namespace
}  // namespace esker::testing
