#include "format/segment_header.h"

#include "tests/format/tamper.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::ForEachBitFlip;
using testing::WithField;
using testing::WithFieldAndCrc;

constexpr size_t kHeaderCrcAt = 60;

SegmentHeader ExampleHeader() {
  SegmentHeader header;
  for (size_t i = 0; i < header.store_id.size(); ++i) header.store_id[i] = static_cast<uint8_t>(0xA0 + i);
  header.segment_id = 7;
  header.generation = 3;
  header.segment_bytes = 256 << 20;
  header.created_unix_ms = 1700000000000;
  return header;
}

const std::string& Example() {
  static const std::string block = [] {
    std::string bytes(kFirstRecordOffset, '\xee');
    EncodeSegmentHeader(ExampleHeader(), {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
    return bytes;
  }();
  return block;
}

absl::Status Decode(const std::string& bytes) { return DecodeSegmentHeader(AsBytes(bytes)).status(); }

TEST(SegmentHeader, RoundTrip) {
  ASSERT_OK_AND_ASSIGN(const SegmentHeader header, DecodeSegmentHeader(AsBytes(Example())));
  EXPECT_EQ(header, ExampleHeader());
  EXPECT_EQ(Example().substr(kSegmentHeaderBytes),
            std::string(kFirstRecordOffset - kSegmentHeaderBytes, '\0'));
}

TEST(SegmentHeader, CorruptMagic) {
  EXPECT_STATUS(Decode(WithField(Example(), 0, 'F')), absl::StatusCode::kDataLoss,
                "\"ESKS\", found the bytes 46 53");
}

TEST(SegmentHeader, CorruptLength) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{4096}, uint64_t{10000}, ~uint64_t{0}}) {
    EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 40, bytes, kHeaderCrcAt)), absl::StatusCode::kDataLoss,
                  "whole blocks");
  }
}

TEST(SegmentHeader, CorruptChecksum) {
  EXPECT_STATUS(Decode(WithField(Example(), kHeaderCrcAt, uint32_t{5})), absl::StatusCode::kDataLoss,
                "00000005");
}

TEST(SegmentHeader, InvalidVersion) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 4, uint16_t{9}, kHeaderCrcAt)),
                absl::StatusCode::kUnimplemented, "format version 9");
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 4, uint16_t{0}, kHeaderCrcAt)), absl::StatusCode::kDataLoss,
                "found 0");
}

TEST(SegmentHeader, ReservedBytesMustBeZero) {
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 6, uint16_t{1}, kHeaderCrcAt)), absl::StatusCode::kDataLoss,
                "reserved");
  EXPECT_STATUS(Decode(WithFieldAndCrc(Example(), 56, uint32_t{1}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "reserved");
}

TEST(SegmentHeader, Truncated) {
  for (size_t size = 0; size < kSegmentHeaderBytes; ++size) {
    EXPECT_STATUS(Decode(Example().substr(0, size)), absl::StatusCode::kDataLoss, "cut short");
  }
}

TEST(SegmentHeader, EveryFlippedBitIsRefused) {
  ForEachBitFlip(Example(), 0, kSegmentHeaderBytes, [](const std::string& damaged, size_t bit) {
    EXPECT_EQ(Decode(damaged).code(), absl::StatusCode::kDataLoss) << bit;
  });
}

TEST(SegmentFileName, GoesBackAndForth) {
  EXPECT_EQ(SegmentFileName(7), "segment-0000000000000007.esk");
  for (const uint64_t id : {uint64_t{0}, uint64_t{7}, uint64_t{0xABCDEF}, ~uint64_t{0}}) {
    EXPECT_EQ(SegmentIdFromFileName(SegmentFileName(id)), id);
  }
}

TEST(SegmentFileName, OtherNamesAreNotSegments) {
  for (const std::string_view name :
       {"", "segment-7.esk", "segment-000000000000000A.esk", "segment-0000000000000007.tmp",
        "segment-00000000000000 7.esk", "segment--000000000000007.esk", "segment-0x00000000000007.esk",
        "segment-0000000000000007.esk.bak", "Segment-0000000000000007.esk"}) {
    EXPECT_FALSE(SegmentIdFromFileName(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace esker
