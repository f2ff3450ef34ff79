#include "format/codec.h"

#include <zstd.h>

#include <random>
#include <thread>

#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

// Bytes with repetitions, so that they compress.
std::vector<std::byte> Compressible(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random() % 4);
  return bytes;
}

const Codec& Zstd() { return *FindCodec(CodecId::kZstd); }

std::vector<std::byte> EncodeOrDie(ByteView raw) {
  std::vector<std::byte> stored;
  EXPECT_TRUE(Zstd().encode(raw, DType::kU8, &stored));
  return stored;
}

TEST(Codec, EveryRowIsFoundByNumberAndName) {
  for (const Codec& codec : AllCodecs()) {
    EXPECT_EQ(FindCodec(codec.id), &codec);
    EXPECT_EQ(FindCodec(codec.name), &codec);
    EXPECT_EQ(CodecFromNumber(static_cast<uint64_t>(codec.id)), codec.id);
  }
  EXPECT_EQ(FindCodec("lzma"), nullptr);
  EXPECT_EQ(FindCodec(static_cast<CodecId>(200)), nullptr);
  EXPECT_FALSE(CodecFromNumber(257).has_value());
}

TEST(Codec, RawIsNeverSmallerAndCopies) {
  const Codec& raw_codec = *FindCodec(CodecId::kRaw);
  const std::vector<std::byte> raw = Compressible(100, 1);
  std::vector<std::byte> stored(7);
  EXPECT_FALSE(raw_codec.encode(raw, DType::kU8, &stored));
  EXPECT_TRUE(stored.empty());
  std::vector<std::byte> back(100);
  EXPECT_OK(raw_codec.decode(raw, DType::kU8, back));
  EXPECT_EQ(back, raw);
  back.resize(99);
  EXPECT_STATUS(raw_codec.decode(raw, DType::kU8, back), absl::StatusCode::kDataLoss, "99");
}

TEST(Codec, RoundTrip) {
  const uint64_t seed = testing::TestSeed();
  for (const size_t size : {100u, 4096u, 1000003u, 4u << 20}) {
    const std::vector<std::byte> raw = Compressible(size, seed);
    const std::vector<std::byte> stored = EncodeOrDie(raw);
    EXPECT_LT(stored.size(), raw.size());
    std::vector<std::byte> back(size);
    EXPECT_OK(Zstd().decode(stored, DType::kU8, back));
    EXPECT_EQ(back, raw);
  }
}

TEST(Codec, WhatDoesNotShrinkIsRefused) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<std::byte> noise(100000);
  for (std::byte& b : noise) b = static_cast<std::byte>(random());
  std::vector<std::byte> stored(3);
  EXPECT_FALSE(Zstd().encode(noise, DType::kU8, &stored));
  EXPECT_TRUE(stored.empty());
  for (const size_t size : {0u, 1u, 2u}) {
    EXPECT_FALSE(Zstd().encode(ByteView(noise).first(size), DType::kU8, &stored)) << size;
  }
}

TEST(Codec, AReusedBufferKeepsItsMemory) {
  std::vector<std::byte> stored;
  const std::vector<std::byte> raw = Compressible(1 << 20, 3);
  ASSERT_TRUE(Zstd().encode(raw, DType::kU8, &stored));
  const std::byte* const memory = stored.data();
  ASSERT_TRUE(Zstd().encode(raw, DType::kU8, &stored));
  EXPECT_EQ(stored.data(), memory);
}

TEST(Codec, CorruptLength) {
  const std::vector<std::byte> raw = Compressible(5000, 1);
  const std::vector<std::byte> stored = EncodeOrDie(raw);
  for (const size_t wrong : {0u, 1u, 4999u, 5001u, 1000000u}) {
    std::vector<std::byte> back(wrong);
    EXPECT_STATUS(Zstd().decode(stored, DType::kU8, back), absl::StatusCode::kDataLoss, "5000");
  }
}

TEST(Codec, Truncated) {
  const std::vector<std::byte> stored = EncodeOrDie(Compressible(5000, 1));
  std::vector<std::byte> back(5000);
  for (size_t size = 0; size < stored.size(); ++size) {
    EXPECT_EQ(Zstd().decode(ByteView(stored).first(size), DType::kU8, back).code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
}

TEST(Codec, BytesBehindTheFrameAreRefused) {
  std::vector<std::byte> stored = EncodeOrDie(Compressible(5000, 1));
  const size_t frame_bytes = stored.size();
  std::vector<std::byte> back(5000);
  stored.push_back(std::byte{0});
  EXPECT_STATUS(Zstd().decode(stored, DType::kU8, back), absl::StatusCode::kDataLoss, "behind it");
  // An empty frame behind, which zstd by itself would take.
  stored.resize(frame_bytes + ZSTD_compressBound(0));
  const size_t empty = ZSTD_compress(stored.data() + frame_bytes, stored.size() - frame_bytes, nullptr, 0, 1);
  stored.resize(frame_bytes + empty);
  EXPECT_STATUS(Zstd().decode(stored, DType::kU8, back), absl::StatusCode::kDataLoss, "behind it");
}

TEST(Codec, AFrameWithoutItsSizeIsRefused) {
  const std::vector<std::byte> raw = Compressible(5000, 1);
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
  std::vector<std::byte> stored(ZSTD_compressBound(raw.size()));
  stored.resize(ZSTD_compress2(context, stored.data(), stored.size(), raw.data(), raw.size()));
  ZSTD_freeCCtx(context);
  std::vector<std::byte> back(5000);
  EXPECT_STATUS(Zstd().decode(stored, DType::kU8, back), absl::StatusCode::kDataLoss, "unknown size");
}

TEST(Codec, ASkippableFrameIsNotAnEmptyChunk) {
  std::vector<std::byte> stored(8, std::byte{0});
  StoreLittle<uint32_t>(stored.data(), 0x184D2A50);
  EXPECT_STATUS(Zstd().decode(stored, DType::kU8, {}), absl::StatusCode::kDataLoss, "don't begin");
}

// Decoding damaged frames, whatever comes out, neither writes outside the buffer (ASan watches) nor fails
// otherwise.
TEST(Codec, DamagedFramesNeverWriteBeyondTheBuffer) {
  const uint64_t seed = testing::TestSeed();
  std::mt19937_64 random(seed);
  const std::vector<std::byte> intact = EncodeOrDie(Compressible(3000, seed));
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> stored = intact;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      stored[random() % stored.size()] ^= static_cast<std::byte>(1 << random() % 8);
    }
    std::vector<std::byte> back(3000);
    const absl::Status status = Zstd().decode(stored, DType::kU8, back);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss) << status;
  }
}

TEST(Codec, ThreadsDoNotShareScratchMemory) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      const std::vector<std::byte> raw = Compressible(50000, t);
      for (int i = 0; i < 20; ++i) {
        std::vector<std::byte> back(raw.size());
        EXPECT_OK(Zstd().decode(EncodeOrDie(raw), DType::kU8, back));
        EXPECT_EQ(back, raw);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace esker
