#include "server/store/index_records.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/str_format.h"
#include "tests/testing/status_matchers.h"

namespace esker::store {
namespace {

Hash128 SomeHash(uint8_t first) {
  Hash128 hash;
  for (size_t i = 0; i < hash.bytes.size(); ++i) hash.bytes[i] = static_cast<uint8_t>(first + i);
  return hash;
}

ChunkEntry SomeChunk() {
  return {.info = {.hash = SomeHash(0x10),
                   .codec = CodecId::kZstd,
                   .dtype = DType::kBF16,
                   .raw_bytes = 4 << 20,
                   .stored_bytes = 3'000'001,
                   .stored_crc32c = 0xdeadbeef},
          .place = {.segment_id = 0x0102030405060708, .generation = 9, .offset = 4096 * 17},
          .refs = 42};
}

PartEntry SomePart() {
  return {.attempt = 7,
          .raw_bytes = 1ull << 40,
          .stored_bytes = 1ull << 39,
          .new_stored_bytes = 12345,
          .sealed_unix_ms = 1'700'000'000'123,
          .part_digest = SomeHash(0x20),
          .layout_digest = SomeHash(0x40)};
}

TEST(IndexRecords, RoundTrip) {
  const ChunkEntry chunk = SomeChunk();
  ASSERT_OK_AND_ASSIGN(const ChunkEntry chunk_again,
                       DecodeChunkValue(chunk.info.hash, EncodeChunkValue(chunk)));
  EXPECT_EQ(chunk_again, chunk);

  const PlaceEntry place{.segment_id = 3, .offset = 8192, .record_bytes = 3 * 4096, .hash = SomeHash(1)};
  ASSERT_OK_AND_ASSIGN(const PlaceEntry place_again,
                       DecodePlace(EncodePlaceKey(place.segment_id, place.offset), EncodePlaceValue(place)));
  EXPECT_EQ(place_again, place);

  ASSERT_OK_AND_ASSIGN(const PartEntry part_again, DecodePartValue(EncodePartValue(SomePart())));
  EXPECT_EQ(part_again, SomePart());

  ASSERT_OK_AND_ASSIGN(const uint64_t refs, DecodeLayoutRefs(EncodeLayoutRefs(77)));
  EXPECT_EQ(refs, 77u);

  const PartKey key{{.run = "llama-70b", .step = ~uint64_t{0}, .save_id = 5}, UINT32_MAX};
  ASSERT_OK_AND_ASSIGN(const PartKey key_again, DecodePartKey(EncodePartKey(key)));
  EXPECT_EQ(key_again, key);
  ASSERT_OK_AND_ASSIGN(const SaveRef save_again, DecodeSaveKey(EncodeSaveKey(key.save)));
  EXPECT_EQ(save_again, key.save);
}

// What docs/format.md shows in its block of this name.
std::string PageBlock(const std::string& name) {
  std::stringstream page;
  page << std::ifstream(ESKER_SOURCE_DIR "/docs/format.md").rdbuf();
  const std::string opening = "\n```hex " + name + "\n";
  const size_t begin = page.str().find(opening);
  if (begin == std::string::npos) return "there is none";
  const size_t end = page.str().find("\n```", begin + opening.size());
  return page.str().substr(begin + opening.size(), end + 1 - begin - opening.size());
}

std::string HexLines(std::string_view bytes) {
  std::string lines;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i % 16 == 0) absl::StrAppendFormat(&lines, "%s%08x ", i == 0 ? "" : "\n", i);
    absl::StrAppendFormat(&lines, " %02x", static_cast<uint8_t>(bytes[i]));
  }
  return lines + "\n";
}

TEST(IndexRecords, BytesAreAsThePageShows) {
  const ChunkInfo info{.hash = {{0x10, 0x7b, 0x59, 0x21, 0xdb, 0x09, 0x7f, 0x34, 0x2a, 0x83, 0xc6, 0x64, 0x33,
                                 0xba, 0x9f, 0x3f}},
                       .codec = CodecId::kRaw,
                       .dtype = DType::kBF16,
                       .raw_bytes = 8,
                       .stored_bytes = 8,
                       .stored_crc32c = 0x2bd0d1f0};
  const ChunkEntry chunk{
      .info = info, .place = {.segment_id = 7, .generation = 3, .offset = 4096}, .refs = 2};
  EXPECT_EQ(HexLines(EncodeChunkValue(chunk)), PageBlock("index-chunk"));
  const PlaceEntry place{.segment_id = 7, .offset = 4096, .record_bytes = 4096, .hash = info.hash};
  EXPECT_EQ(HexLines(EncodePlaceValue(place)), PageBlock("index-place"));
  const PartKey key{{.run = "demo", .step = 5, .save_id = 0x1122334455667788}, 1};
  EXPECT_EQ(HexLines(EncodePartKey(key)), PageBlock("index-part-key"));
  EXPECT_EQ(EncodePlaceKey(1, 0x1000), std::string("\0\0\0\0\0\0\0\1\0\0\0\0\0\0\x10\0", 16));
}

TEST(IndexRecords, KeysSortAsTheirNumbersDo) {
  std::vector<PartKey> keys;
  for (const char* run : {"a", "a-b", "a.b", "ab", "b"}) {
    for (const uint64_t step : {0ull, 1ull, 255ull, 256ull, 1ull << 40}) {
      for (const uint64_t save_id : {0ull, ~0ull}) {
        for (const uint32_t rank : {0u, 1u, 256u})
          keys.push_back({{.run = run, .step = step, .save_id = save_id}, rank});
      }
    }
  }
  ASSERT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  for (size_t i = 1; i < keys.size(); ++i) EXPECT_LT(EncodePartKey(keys[i - 1]), EncodePartKey(keys[i]));
}

TEST(IndexRecords, Truncated) {
  const std::string chunk = EncodeChunkValue(SomeChunk());
  const std::string part = EncodePartValue(SomePart());
  const std::string place_key = EncodePlaceKey(1, 4096);
  const std::string place = EncodePlaceValue({.segment_id = 1, .offset = 4096, .record_bytes = 4096});
  for (size_t length = 0; length < chunk.size(); ++length) {
    EXPECT_STATUS(DecodeChunkValue(Hash128{}, chunk.substr(0, length)), absl::StatusCode::kDataLoss,
                  "expected 56");
  }
  for (size_t length = 0; length < part.size(); ++length) {
    EXPECT_STATUS(DecodePartValue(part.substr(0, length)), absl::StatusCode::kDataLoss, "expected 80");
  }
  for (size_t length = 0; length < place.size(); ++length) {
    EXPECT_STATUS(DecodePlace(place_key, place.substr(0, length)), absl::StatusCode::kDataLoss,
                  "expected 32");
  }
  EXPECT_STATUS(DecodePlace(place_key.substr(1), place), absl::StatusCode::kDataLoss, "16");
  EXPECT_STATUS(DecodeLayoutRefs(""), absl::StatusCode::kDataLoss, "expected 16");
  const std::string key = EncodePartKey({{.run = "run", .step = 1, .save_id = 2}, 3});
  for (size_t length = 0; length < key.size(); ++length) {
    EXPECT_STATUS(DecodePartKey(key.substr(0, length)), absl::StatusCode::kDataLoss, "key of a");
  }
}

TEST(IndexRecords, ADeltaHasABase) {
  ChunkEntry entry = SomeChunk();
  entry.info.codec = CodecId::kDelta;
  entry.base.bytes.fill(0x5a);
  std::string value = EncodeChunkValue(entry);
  EXPECT_EQ(value.size(), 72u);
  EXPECT_EQ(DecodeChunkValue(entry.info.hash, value).value(), entry);
  for (size_t length = 1; length < value.size(); ++length) {
    EXPECT_STATUS(DecodeChunkValue(Hash128{}, value.substr(0, length)), absl::StatusCode::kDataLoss,
                  "expected 72");
  }
  value[1] = static_cast<char>(CodecId::kZstd);
  EXPECT_STATUS(DecodeChunkValue(Hash128{}, value), absl::StatusCode::kDataLoss, "names its base");
  value = EncodeChunkValue(SomeChunk());
  value[1] = static_cast<char>(CodecId::kDelta);
  EXPECT_STATUS(DecodeChunkValue(Hash128{}, value), absl::StatusCode::kDataLoss, "names its base");
}

TEST(IndexRecords, InvalidVersion) {
  std::string chunk = EncodeChunkValue(SomeChunk());
  chunk[0] = 3;
  EXPECT_STATUS(DecodeChunkValue(Hash128{}, chunk), absl::StatusCode::kUnimplemented, "version 3");
  chunk += "a field of version 3";
  EXPECT_STATUS(DecodeChunkValue(Hash128{}, chunk), absl::StatusCode::kUnimplemented, "version 3");
  std::string part = EncodePartValue(SomePart());
  part[0] = 0;
  EXPECT_STATUS(DecodePartValue(part), absl::StatusCode::kDataLoss, "version");
}

TEST(IndexRecords, CorruptValues) {
  ChunkEntry chunk = SomeChunk();
  chunk.info.stored_bytes = chunk.info.raw_bytes + 1;
  EXPECT_STATUS(DecodeChunkValue(chunk.info.hash, EncodeChunkValue(chunk)), absl::StatusCode::kDataLoss,
                chunk.info.hash.ToHex());
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{4097}, uint64_t{1} << 40}) {
    EXPECT_STATUS(DecodePlace(EncodePlaceKey(1, 4096),
                              EncodePlaceValue({.segment_id = 1, .offset = 4096, .record_bytes = bytes})),
                  absl::StatusCode::kDataLoss, "segment 1");
  }
}

}  // namespace
}  // namespace esker::store
