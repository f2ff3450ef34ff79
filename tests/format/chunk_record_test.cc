#include "format/chunk_record.h"

#include "tests/format/tamper.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::ForEachBitFlip;
using testing::WithField;
using testing::WithFieldAndCrc;

constexpr size_t kHeaderCrcAt = 76;
constexpr RecordPlace kPlace = {.segment_id = 7, .generation = 3, .offset = 8192};

std::string Payload(size_t size) {
  std::string payload(size, '\0');
  for (size_t i = 0; i < size; ++i) payload[i] = static_cast<char>(i * 31 + 7);
  return payload;
}

ChunkInfo InfoOf(std::string_view payload) {
  ChunkInfo info;
  info.hash = HashOf(AsBytes(payload));
  info.dtype = DType::kU8;
  info.raw_bytes = payload.size();
  info.stored_bytes = payload.size();
  info.stored_crc32c = Crc32c(AsBytes(payload));
  return info;
}

// A whole record of `payload`, stored raw.
std::string RecordOf(std::string_view payload) {
  std::string record(RecordBytes(payload.size()), '\xee');
  EncodeChunkHeader(InfoOf(payload), kPlace, {reinterpret_cast<std::byte*>(record.data()), record.size()});
  const uint64_t begin = PayloadOffset(payload.size());
  record.replace(begin, payload.size(), payload);
  std::fill(record.begin() + static_cast<ptrdiff_t>(begin + payload.size()), record.end(), '\0');
  return record;
}

const std::string& Example() {
  static const std::string record = RecordOf(Payload(100));
  return record;
}

absl::Status Decode(const std::string& bytes) { return DecodeChunkHeader(AsBytes(bytes)).status(); }

TEST(ChunkRecord, RoundTrip) {
  for (const size_t size : {1u, 100u, 3968u, 3969u, 65535u, 65536u, 4u << 20}) {
    const std::string payload = Payload(size);
    const std::string record = RecordOf(payload);
    ASSERT_OK_AND_ASSIGN(const ChunkHeader header, DecodeChunkHeader(AsBytes(record)));
    EXPECT_EQ(header.info, InfoOf(payload));
    EXPECT_EQ(header.place, kPlace);
    EXPECT_EQ(record.substr(header.payload_offset, size), payload);
    EXPECT_OK(CheckRecord(AsBytes(record), kPlace, InfoOf(payload).hash));
  }
}

TEST(ChunkRecord, SmallPayloadsShareTheHeadersBlockAndLargeOnesHaveTheirOwn) {
  EXPECT_EQ(PayloadOffset(1), 128u);
  EXPECT_EQ(PayloadOffset(65535), 128u);
  EXPECT_EQ(PayloadOffset(65536), 4096u);
  EXPECT_EQ(RecordBytes(1), 4096u);
  EXPECT_EQ(RecordBytes(3968), 4096u);
  EXPECT_EQ(RecordBytes(3969), 8192u);
  EXPECT_EQ(RecordBytes(4 << 20), (4u << 20) + 4096u);
}

TEST(ChunkRecord, ZerosUpToThePayload) {
  EXPECT_EQ(Example().substr(kChunkHeaderBytes, 128 - kChunkHeaderBytes),
            std::string(128 - kChunkHeaderBytes, '\0'));
}

TEST(ChunkRecord, CorruptMagic) {
  EXPECT_STATUS(Decode(WithField(Example(), 3, 'S')), absl::StatusCode::kDataLoss,
                "expected the magic number \"ESKC\"");
}

TEST(ChunkRecord, CorruptLength) {
  const auto with_lengths = [](uint64_t raw, uint64_t stored) {
    return WithFieldAndCrc(WithField(Example(), 16, raw), 24, stored, kHeaderCrcAt);
  };
  EXPECT_STATUS(Decode(with_lengths(0, 0)), absl::StatusCode::kDataLoss, "raw bytes, found 0");
  EXPECT_STATUS(Decode(with_lengths(kMaxChunkBytes + 1, 100)), absl::StatusCode::kDataLoss, "4194305");
  EXPECT_STATUS(Decode(with_lengths(~uint64_t{0}, ~uint64_t{0})), absl::StatusCode::kDataLoss, "raw bytes");
  EXPECT_STATUS(Decode(with_lengths(100, 0)), absl::StatusCode::kDataLoss, "stored bytes, found 0");
  EXPECT_STATUS(Decode(with_lengths(100, 101)), absl::StatusCode::kDataLoss, "found 101");
  EXPECT_STATUS(Decode(with_lengths(100, 99)), absl::StatusCode::kDataLoss, "stored raw");
}

TEST(ChunkRecord, PayloadOffsetMustBeTheRuledOne) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 8, uint32_t{4096}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "says at 4096");
}

TEST(ChunkRecord, OffsetMustBeAligned) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 64, uint64_t{8193}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "8193");
}

TEST(ChunkRecord, WholeElementsOnly) {
  const auto f64 = static_cast<uint8_t>(DType::kF64);
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 7, f64, kHeaderCrcAt)), absl::StatusCode::kDataLoss,
                "whole elements");
}

TEST(ChunkRecord, CorruptChecksum) {
  EXPECT_STATUS(Decode(WithField(Example(), kHeaderCrcAt, uint32_t{1})), absl::StatusCode::kDataLoss,
                "its header is damaged: it says CRC-32C 00000001");
}

TEST(ChunkRecord, InvalidVersion) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 4, uint16_t{2}, kHeaderCrcAt)),
                absl::StatusCode::kUnimplemented, "format version 2");
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 4, uint16_t{0}, kHeaderCrcAt)), absl::StatusCode::kDataLoss,
                "found 0");
}

TEST(ChunkRecord, ANewerWritersCodecOrDtypeIsNotDamage) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 6, uint8_t{99}, kHeaderCrcAt)),
                absl::StatusCode::kUnimplemented, "codec 99");
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 7, uint8_t{99}, kHeaderCrcAt)),
                absl::StatusCode::kUnimplemented, "dtype 99");
}

TEST(ChunkRecord, ReservedBytesMustBeZero) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 72, uint32_t{1}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "reserved");
}

TEST(ChunkRecord, Truncated) {
  for (size_t size = 0; size < kChunkHeaderBytes; ++size) {
    EXPECT_STATUS(Decode(Example().substr(0, size)), absl::StatusCode::kDataLoss, "cut short");
  }
  const Hash128 hash = InfoOf(Payload(100)).hash;
  EXPECT_STATUS(CheckRecord(AsBytes(Example()).first(227), kPlace, hash), absl::StatusCode::kDataLoss,
                "expected 228 bytes, found 227");
}

TEST(ChunkRecord, EveryFlippedBitOfTheHeaderIsRefused) {
  ForEachBitFlip(Example(), 0, kChunkHeaderBytes, [](const std::string& damaged, size_t bit) {
    EXPECT_EQ(Decode(damaged).code(), absl::StatusCode::kDataLoss) << bit;
  });
}

TEST(ChunkRecord, EveryFlippedBitOfThePayloadIsRefused) {
  const Hash128 hash = InfoOf(Payload(100)).hash;
  ForEachBitFlip(Example(), 128, 228, [&](const std::string& damaged, size_t bit) {
    EXPECT_EQ(CheckRecord(AsBytes(damaged), kPlace, hash).status().code(), absl::StatusCode::kDataLoss)
        << bit;
  });
}

TEST(ChunkRecord, AMisdirectedOrStaleRecordIsRefused) {
  const Hash128 hash = InfoOf(Payload(100)).hash;
  for (const RecordPlace& place :
       {RecordPlace{8, 3, 8192}, RecordPlace{7, 4, 8192}, RecordPlace{7, 3, 12288}}) {
    EXPECT_STATUS(CheckRecord(AsBytes(Example()), place, hash), absl::StatusCode::kDataLoss,
                  "found that of segment 7, generation 3, offset 8192");
  }
  EXPECT_STATUS(CheckRecord(AsBytes(Example()), kPlace, HashOf({})), absl::StatusCode::kDataLoss,
                hash.ToHex());
}

TEST(ValidateChunkInfo, RefusesWhatIsInNoTable) {
  ChunkInfo info = InfoOf(Payload(8));
  EXPECT_OK(ValidateChunkInfo(info));
  info.codec = static_cast<CodecId>(99);
  EXPECT_STATUS(ValidateChunkInfo(info), absl::StatusCode::kInvalidArgument, "codec number 99");
  info = InfoOf(Payload(8));
  info.dtype = static_cast<DType>(99);
  EXPECT_STATUS(ValidateChunkInfo(info), absl::StatusCode::kInvalidArgument, "dtype number 99");
}

}  // namespace
}  // namespace esker
