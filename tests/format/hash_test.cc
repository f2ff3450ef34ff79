#include "format/hash.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

TEST(Crc32c, HasTheStandardsCheckValue) {
  EXPECT_EQ(Crc32c(AsBytes("123456789")), 0xE3069283u);
  EXPECT_EQ(Crc32c({}), 0u);
}

// RFC 3720, appendix B.4.
TEST(Crc32c, AgreesWithRfc3720) {
  EXPECT_EQ(Crc32c(AsBytes(std::string(32, '\0'))), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(AsBytes(std::string(32, '\xff'))), 0x62A8AB43u);
  std::string ascending(32, '\0');
  std::iota(ascending.begin(), ascending.end(), '\0');
  EXPECT_EQ(Crc32c(AsBytes(ascending)), 0x46DD794Eu);
}

TEST(Crc32c, GoesOnFromASeed) {
  const std::string text = "the stored bytes of one chunk, checked in two steps";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const uint32_t head = Crc32c(AsBytes(text.substr(0, cut)));
    EXPECT_EQ(Crc32c(AsBytes(text.substr(cut)), head), Crc32c(AsBytes(text))) << cut;
  }
}

// The values that xxHash's own xxh128sum prints.
TEST(HashOf, IsXxh3InCanonicalOrder) {
  EXPECT_EQ(HashOf({}).ToHex(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(HashOf(AsBytes("abc")).ToHex(), "06b05ab6733a618578af5f94892f3950");
}

TEST(ChecksumsOf, AreBothOfTheSameBytes) {
  constexpr size_t kPiece = 64 << 10;
  std::string text(3 * kPiece + 5, '\0');
  std::iota(text.begin(), text.end(), '\0');
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{240}, size_t{241}, kPiece - 1, kPiece, kPiece + 1,
                             2 * kPiece, 3 * kPiece + 5}) {
    const ByteView some = AsBytes(text).subspan(0, bytes);
    const Checksums sums = ChecksumsOf(some);
    EXPECT_EQ(sums.hash, HashOf(some)) << bytes;
    EXPECT_EQ(sums.crc32c, Crc32c(some)) << bytes;
  }
}

TEST(CopyAndHash, JoinsThePiecesAndNamesThem) {
  std::string text((200 << 10) + 7, '\0');
  std::iota(text.begin(), text.end(), '\0');
  for (const std::vector<size_t>& cuts :
       {std::vector<size_t>{}, {text.size()}, {0, 1, 1}, {1, 65'535, 65'536}, {65'537, 70'000, 200'000}}) {
    const size_t bytes = cuts.empty() ? 0 : cuts.back();
    std::vector<ByteView> pieces;
    size_t begin = 0;
    for (const size_t cut : cuts) {
      pieces.push_back(AsBytes(text).subspan(begin, cut - begin));
      begin = cut;
    }
    std::vector<std::byte> copy(bytes);
    EXPECT_EQ(CopyAndHash(pieces, copy), HashOf(AsBytes(text).first(bytes))) << bytes;
    EXPECT_TRUE(std::equal(copy.begin(), copy.end(), AsBytes(text).begin())) << bytes;
  }
}

TEST(HashFromBytes, TakesExactlySixteen) {
  const Hash128 hash = HashOf(AsBytes("chunk"));
  ASSERT_OK_AND_ASSIGN(const Hash128 again, HashFromBytes(hash.AsText(), "chunk"));
  EXPECT_EQ(again, hash);
  EXPECT_STATUS(HashFromBytes("short", "part_digest"), absl::StatusCode::kInvalidArgument, "part_digest");
  EXPECT_STATUS(HashFromBytes(std::string(17, 'x'), "d"), absl::StatusCode::kInvalidArgument, "found 17");
}

TEST(Hash128, IsOrderedByBytes) {
  Hash128 low, high;
  low.bytes[15] = 0xFF;
  high.bytes[0] = 1;
  EXPECT_LT(low, high);
}

}  // namespace
}  // namespace esker
