#include "format/delta.h"

#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

const Codec& Planes() { return *FindCodec(CodecId::kPlanes); }

Hash128 BaseHash() {
  Hash128 hash;
  hash.bytes.fill(0xb5);
  return hash;
}

std::vector<std::byte> RandomBytes(size_t size, std::mt19937_64* random) {
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>((*random)());
  return bytes;
}

// Each `stride`-th byte changed.
std::vector<std::byte> Changed(std::vector<std::byte> bytes, size_t stride, std::mt19937_64* random) {
  for (size_t i = 0; i < bytes.size(); i += stride) bytes[i] ^= static_cast<std::byte>(1 + (*random)() % 255);
  return bytes;
}

std::vector<std::byte> DecodeOrDie(ByteView stored, ByteView base, DType dtype) {
  const absl::StatusOr<Delta> delta = ParseDelta(stored);
  EXPECT_OK(delta);
  EXPECT_EQ(delta->base, BaseHash());
  std::vector<std::byte> raw(base.size());
  EXPECT_OK(delta->codec->decode(delta->difference, dtype, raw));
  XorInto(raw, base);
  return raw;
}

TEST(Delta, GivesBackEveryDtypeAndLength) {
  std::mt19937_64 random(testing::TestSeed());
  for (int number = 0; number < kDTypeCount; ++number) {
    const DType dtype = DTypeFromNumber(number).value();
    for (const size_t elements : {100ul, 4'096ul, 40'001ul, 130'000ul}) {
      const std::vector<std::byte> base = RandomBytes(elements * ElementBytes(dtype), &random);
      const std::vector<std::byte> raw = Changed(base, 37, &random);
      std::vector<std::byte> stored;
      ASSERT_TRUE(EncodeDelta(Planes(), raw, base, BaseHash(), dtype, &stored))
          << DTypeName(dtype) << elements;
      EXPECT_LT(stored.size(), raw.size());
      EXPECT_TRUE(DecodeOrDie(stored, base, dtype) == raw);
    }
  }
}

TEST(Delta, IsNotWorthItWhereEverythingChanged) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> base = RandomBytes(1 << 20, &random);
  std::vector<std::byte> stored = {std::byte{1}};
  EXPECT_FALSE(EncodeDelta(Planes(), RandomBytes(1 << 20, &random), base, BaseHash(), DType::kU8, &stored));
}

// The chunk alone is smaller: all zeros, while its base was not.
TEST(Delta, IsNotWorthItWhereTheChunkAloneIsSmaller) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> base = RandomBytes(1 << 20, &random);
  const std::vector<std::byte> zeros(1 << 20);
  std::vector<std::byte> stored;
  EXPECT_FALSE(EncodeDelta(Planes(), zeros, base, BaseHash(), DType::kU8, &stored));
}

TEST(Delta, OfASingleByteIsLargerThanTheByte) {
  const std::vector<std::byte> base = {std::byte{1}};
  const std::vector<std::byte> raw = {std::byte{2}};
  std::vector<std::byte> stored;
  EXPECT_FALSE(EncodeDelta(Planes(), raw, base, BaseHash(), DType::kU8, &stored));
}

TEST(Delta, RefusesWhatIsNone) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> base = RandomBytes(10'000, &random);
  std::vector<std::byte> good;
  ASSERT_TRUE(EncodeDelta(Planes(), Changed(base, 99, &random), base, BaseHash(), DType::kU8, &good));
  for (const size_t length : {0ul, 16ul, 24ul}) {
    EXPECT_STATUS(ParseDelta(ByteView(good).first(length)), absl::StatusCode::kDataLoss,
                  "expected more than 24");
  }
  std::vector<std::byte> bad = good;
  bad[16] = std::byte{200};
  EXPECT_STATUS(ParseDelta(bad), absl::StatusCode::kDataLoss, "codec 200");
  bad[16] = static_cast<std::byte>(CodecId::kDelta);  // of a delta
  EXPECT_STATUS(ParseDelta(bad), absl::StatusCode::kDataLoss, "codec 3");
  bad = good;
  bad[23] = std::byte{1};
  EXPECT_STATUS(ParseDelta(bad), absl::StatusCode::kDataLoss, "reserved");
}

}  // namespace
}  // namespace esker
