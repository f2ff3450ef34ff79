#include "format/planes.h"

#include <algorithm>
#include <random>

#include "format/base/text.h"
#include "format/chunk_record.h"
#include "tests/format/plane_fixture.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

constexpr size_t kHeadBytes = 4;
constexpr size_t kBlock = kPlanesBlockBytes;

// Exactly `size` bytes on the heap, so that ASan sees whoever leaves them.
std::vector<std::byte> Decoded(ByteView stored, DType dtype, size_t size) {
  std::vector<std::byte> back(size, std::byte{0xa5});
  EXPECT_OK(DecodePlanes(stored, dtype, back));
  return back;
}

std::vector<std::byte> EncodeOrDie(ByteView raw, DType dtype) {
  std::vector<std::byte> stored;
  EXPECT_TRUE(EncodePlanes(raw, dtype, &stored)) << DTypeName(dtype);
  EXPECT_LT(stored.size(), raw.size());
  return stored;
}

// Encodes, and if that made it smaller decodes and compares. Returns whether it did.
bool RoundTrips(ByteView raw, DType dtype) {
  std::vector<std::byte> stored;
  if (!EncodePlanes(raw, dtype, &stored)) {
    EXPECT_TRUE(stored.empty());
    return false;
  }
  EXPECT_LT(stored.size(), raw.size());
  EXPECT_EQ(Decoded(stored, dtype, raw.size()), std::vector<std::byte>(raw.begin(), raw.end()));
  return true;
}

std::vector<DType> AllDTypes() {
  std::vector<DType> dtypes;
  for (int number = 0; number < kDTypeCount; ++number) dtypes.push_back(DTypeFromNumber(number).value());
  return dtypes;
}

TEST(Planes, RoundTripOfEveryDType) {
  std::mt19937_64 random(testing::TestSeed());
  for (const DType dtype : AllDTypes()) {
    SCOPED_TRACE(DTypeName(dtype));
    const size_t size = 2 * kBlock + 4096;
    EXPECT_TRUE(RoundTrips(std::vector<std::byte>(size), dtype));
    EXPECT_TRUE(RoundTrips(std::vector<std::byte>(size, std::byte{0xff}), dtype));
    EXPECT_TRUE(RoundTrips(SparseBytes(size, random), dtype));
    EXPECT_TRUE(RoundTrips(OddBytes(dtype, size, random), dtype));
    EXPECT_FALSE(RoundTrips(NoiseBytes(size, random), dtype));
  }
}

TEST(Planes, RoundTripOfEverySize) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<size_t> sizes = {kBlock - 1, kBlock, kBlock + 1, 3 * kBlock - 16, 3 * kBlock + 16, 500'003};
  for (size_t size = 0; size < 300; ++size) sizes.push_back(size);
  for (const DType dtype :
       {DType::kBytes, DType::kI16, DType::kBF16, DType::kF32, DType::kF64, DType::kC128}) {
    for (const size_t size : sizes) {
      SCOPED_TRACE(StrCat(size, " bytes of ", std::string(DTypeName(dtype))));
      const bool shrinks = RoundTrips(std::vector<std::byte>(size, std::byte{7}), dtype);
      EXPECT_TRUE(shrinks || size < 50);  // the table's length
      RoundTrips(SparseBytes(size, random), dtype);
      RoundTrips(OddBytes(dtype, size, random), dtype);
      RoundTrips(NoiseBytes(size, random), dtype);
    }
  }
}

TEST(Planes, RoundTripOfTheLargestChunk) {
  std::mt19937_64 random(testing::TestSeed());
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    EXPECT_TRUE(RoundTrips(GaussianBytes(dtype, kMaxChunkBytes, random), dtype));
    EXPECT_FALSE(RoundTrips(NoiseBytes(kMaxChunkBytes, random), dtype));
  }
}

TEST(Planes, BlocksAreStoredEachAsItSuits) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<std::byte> raw = GaussianBytes(DType::kF32, 4 * kBlock, random);
  std::fill_n(raw.begin() + kBlock, kBlock, std::byte{0});
  const std::vector<std::byte> noise = NoiseBytes(kBlock, random);
  std::copy(noise.begin(), noise.end(), raw.begin() + 2 * kBlock);
  const std::vector<std::byte> stored = EncodeOrDie(raw, DType::kF32);
  EXPECT_EQ(Decoded(stored, DType::kF32, raw.size()), raw);
  const auto kind = [&](size_t block, size_t plane) {
    return static_cast<PlaneKind>(stored[kHeadBytes + 4 * (4 * block + plane) + 3]);
  };
  EXPECT_EQ(kind(0, 0), PlaneKind::kRaw);
  EXPECT_EQ(kind(0, 3), PlaneKind::kFrame);
  EXPECT_EQ(kind(1, 0), PlaneKind::kConstant);
  EXPECT_EQ(kind(1, 3), PlaneKind::kConstant);
  EXPECT_EQ(kind(2, 3), PlaneKind::kRaw);
  EXPECT_EQ(kind(3, 3), PlaneKind::kFrame);
}

// The walls for dense weights are 0.66 and 0.83.
TEST(Planes, WeightsShrinkToTheirEntropy) {
  std::mt19937_64 random(testing::TestSeed());
  const auto ratio = [&](DType dtype) {
    const std::vector<std::byte> raw = GaussianBytes(dtype, kMaxChunkBytes, random);
    return static_cast<double>(EncodeOrDie(raw, dtype).size()) / static_cast<double>(raw.size());
  };
  EXPECT_LT(ratio(DType::kBF16), 0.68);
  EXPECT_LT(ratio(DType::kF32), 0.85);
}

TEST(Planes, RunsOfZerosShrinkFurtherThanHuffmanCan) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> raw = SparseBytes(kMaxChunkBytes, random);
  EXPECT_LT(EncodeOrDie(raw, DType::kBF16).size(), raw.size() / 16);
}

TEST(Planes, AReusedBufferKeepsItsMemory) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> raw = GaussianBytes(DType::kBF16, kMaxChunkBytes, random);
  std::vector<std::byte> stored = EncodeOrDie(raw, DType::kBF16);
  const std::byte* const memory = stored.data();
  stored.reserve(raw.size());
  ASSERT_TRUE(EncodePlanes(raw, DType::kBF16, &stored));
  const std::byte* const reserved = stored.data();
  ASSERT_TRUE(EncodePlanes(raw, DType::kBF16, &stored));
  EXPECT_EQ(stored.data(), reserved);
  EXPECT_NE(memory, nullptr);
}

// --- Ranges --------------------------------------------------------------------------------------

TEST(Planes, ARangeIsThatPartOfTheWhole) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> raw = GaussianBytes(DType::kBF16, 3 * kBlock + 1000, random);
  const std::vector<std::byte> stored = EncodeOrDie(raw, DType::kBF16);
  for (int round = 0; round < 200; ++round) {
    const size_t offset = random() % (raw.size() + 1);
    const size_t bytes = random() % (raw.size() - offset + 1);
    std::vector<std::byte> part(bytes);
    ASSERT_OK(DecodePlanesRange(stored, DType::kBF16, raw.size(), offset, part));
    ASSERT_TRUE(std::equal(part.begin(), part.end(), raw.begin() + static_cast<ptrdiff_t>(offset)));
  }
}

TEST(Planes, ARangeReadsNoOtherBlock) {
  std::mt19937_64 random(testing::TestSeed());
  const std::vector<std::byte> raw = GaussianBytes(DType::kBF16, 4 * kBlock, random);
  std::vector<std::byte> stored = EncodeOrDie(raw, DType::kBF16);
  // All of the last block, and so its frame.
  std::fill(stored.end() - kBlock / 2, stored.end(), std::byte{0xff});
  std::vector<std::byte> part(3 * kBlock);
  ASSERT_OK(DecodePlanesRange(stored, DType::kBF16, raw.size(), 0, part));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), raw.begin()));
  EXPECT_STATUS(DecodePlanesRange(stored, DType::kBF16, raw.size(), kBlock, part),
                absl::StatusCode::kDataLoss, "block 3, plane 1");
}

// --- Damage --------------------------------------------------------------------------------------

// Small, with all kinds of planes: a raw, a frame, and two constant ones.
std::vector<std::byte> SmallRaw() {
  std::mt19937_64 random(7);
  std::vector<std::byte> raw(1024);
  for (size_t at = 0; at < raw.size(); at += 4) {
    raw[at] = static_cast<std::byte>(random());
    raw[at + 1] = static_cast<std::byte>(random() % 3);
    raw[at + 3] = std::byte{9};
  }
  return raw;
}

std::vector<std::byte> SmallStored() { return EncodeOrDie(SmallRaw(), DType::kI32); }

void ExpectRefused(ByteView stored, std::string_view why, size_t raw_bytes = 1024) {
  std::vector<std::byte> back(raw_bytes);
  EXPECT_STATUS(DecodePlanes(stored, DType::kI32, back), absl::StatusCode::kDataLoss, std::string(why));
}

TEST(Planes, CorruptHead) {
  std::vector<std::byte> stored = SmallStored();
  for (const int rotation : {2, 4, 31, 255}) {
    stored[0] = static_cast<std::byte>(rotation);
    ExpectRefused(stored, "rotation");
  }
  for (size_t reserved = 1; reserved < kHeadBytes; ++reserved) {
    stored = SmallStored();
    stored[reserved] = std::byte{1};
    ExpectRefused(stored, "rotation");
  }
}

TEST(Planes, CorruptTable) {
  const std::vector<std::byte> intact = SmallStored();
  const auto with = [&](size_t plane, PlaneKind kind, uint32_t bytes) {
    std::vector<std::byte> stored = intact;
    StoreLittle<uint32_t>(stored.data() + kHeadBytes + 4 * plane, static_cast<uint32_t>(kind) << 24 | bytes);
    return stored;
  };
  EXPECT_EQ(with(0, PlaneKind::kRaw, 256), intact);
  EXPECT_EQ(with(2, PlaneKind::kConstant, 1), intact);
  ExpectRefused(with(0, static_cast<PlaneKind>(3), 256), "plane 0");
  ExpectRefused(with(0, static_cast<PlaneKind>(255), 256), "plane 0");
  ExpectRefused(with(0, PlaneKind::kRaw, 255), "plane 0");
  ExpectRefused(with(0, PlaneKind::kRaw, 257), "plane 0");
  ExpectRefused(with(0, PlaneKind::kRaw, 0), "plane 0");
  ExpectRefused(with(2, PlaneKind::kConstant, 0), "plane 2");
  ExpectRefused(with(2, PlaneKind::kConstant, 2), "plane 2");
  ExpectRefused(with(1, PlaneKind::kFrame, 0), "plane 1");
  ExpectRefused(with(1, PlaneKind::kFrame, 256), "plane 1");
  ExpectRefused(with(1, PlaneKind::kFrame, 0xffffff), "plane 1");
  ExpectRefused(with(1, PlaneKind::kFrame, 20), "by its table");
  ExpectRefused(with(1, PlaneKind::kConstant, 1), "by its table");
}

TEST(Planes, CorruptLength) {
  for (const size_t wrong : {0, 4, 1020, 1028, 4096, 1 << 20}) ExpectRefused(SmallStored(), "", wrong);
  std::vector<std::byte> longer = SmallStored();
  longer.push_back(std::byte{0});
  ExpectRefused(longer, "by its table");
}

TEST(Planes, CorruptFrame) {
  std::vector<std::byte> stored = SmallStored();
  stored[kHeadBytes + 4 * 4 + 256] ^= std::byte{1};
  ExpectRefused(stored, "block 0, plane 1: the");
}

TEST(Planes, Truncated) {
  const std::vector<std::byte> stored = SmallStored();
  for (size_t size = 0; size < stored.size(); ++size) {
    // A copy of its own, behind whose end ASan watches.
    ExpectRefused(std::vector<std::byte>(stored.begin(), stored.begin() + static_cast<ptrdiff_t>(size)), "");
  }
}

// What comes out is wrong, which the chunk's hash finds; but nothing is read or written outside.
TEST(Planes, FlippedBits) {
  const std::vector<std::byte> intact = SmallStored();
  for (size_t bit = 0; bit < 8 * intact.size(); ++bit) {
    std::vector<std::byte> stored = intact;
    stored[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    std::vector<std::byte> back(1024);
    const absl::Status status = DecodePlanes(stored, DType::kI32, back);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss) << status;
  }
}

TEST(Planes, RandomBytesAreRefusedOrDecoded) {
  std::mt19937_64 random(testing::TestSeed());
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::byte> stored = NoiseBytes(random() % 100, random);
    // A head that passes, so that the table is reached.
    if (stored.size() >= kHeadBytes && random() % 4 != 0) StoreLittle<uint32_t>(stored.data(), random() % 2);
    std::vector<std::byte> back(random() % 64);
    const DType dtype = DTypeFromNumber(random() % kDTypeCount).value();
    const absl::Status status = DecodePlanes(stored, dtype, back);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss) << status;
  }
}

}  // namespace
}  // namespace esker
