#include "tools/fault_names.h"

#include "format/layout.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using Names = std::vector<std::string>;

ShardSpec Shard(const std::string& name, DType dtype, uint64_t elements, uint64_t offset = 0,
                uint64_t total = 0) {
  return {name, dtype, {total == 0 ? elements : total}, {{offset}, {elements}}};
}

v1::Part PartOf(const v1::Layout& layout, const std::vector<uint64_t>& item_bytes, uint64_t chunk_bytes) {
  v1::Part part;
  part.set_layout_digest(std::string(16, 'd'));
  uint64_t items = 0;
  uint64_t raw = 0;
  for (const uint64_t bytes : layout.chunk_raw_bytes()) raw += bytes;
  for (const uint64_t bytes : item_bytes) {
    part.add_item_bytes(bytes);
    items += bytes;
  }
  for (const uint64_t bytes : CutItemChunks(items, chunk_bytes)) part.add_item_chunk_raw_bytes(bytes);
  const int chunks = layout.chunk_raw_bytes_size() + part.item_chunk_raw_bytes_size();
  part.set_chunk_hashes(std::string(16 * static_cast<size_t>(chunks), 'h'));
  part.set_raw_bytes(raw + items);
  return part;
}

TEST(NamesByChunk, NamesEveryTensorAndItemOfAChunk) {
  constexpr uint64_t kChunk = 64;
  // "large" takes chunks of its own; the small ones share; the items come last.
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout,
                       BuildLayout({Shard("large", DType::kU8, 100), Shard("s1", DType::kU8, 10),
                                    Shard("s2", DType::kU8, 20), Shard("empty", DType::kU8, 0)},
                                   {"rng", "loader"}, kChunk));
  const v1::Part part = PartOf(layout, {30, 60}, kChunk);
  ASSERT_OK(ValidatePart(part, layout));
  const std::vector<Names> names = NamesByChunk(part, layout);
  ASSERT_EQ(names.size(), 5u);
  EXPECT_EQ(names[0], Names{"large"});
  EXPECT_EQ(names[1], Names{"large"});
  EXPECT_EQ(names[2], (Names{"s1", "s2"}));
  EXPECT_EQ(names[3], (Names{"item loader", "item rng"}));
  EXPECT_EQ(names[4], Names{"item rng"});
}

TEST(NamesByChunk, BoxesOfOneTensorAreNamedOnce) {
  ASSERT_OK_AND_ASSIGN(
      const v1::Layout layout,
      BuildLayout({Shard("w", DType::kU8, 10, 0, 40), Shard("w", DType::kU8, 10, 20, 40)}, {}, 64));
  const v1::Part part = PartOf(layout, {}, 64);
  EXPECT_EQ(NamesByChunk(part, layout), std::vector<Names>{{"w"}});
}

}  // namespace
}  // namespace esker
