#include "format/envelope.h"

#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"
#include "tests/format/tamper.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::ForEachBitFlip;
using testing::WithField;
using testing::WithFieldAndCrc;

constexpr size_t kHeaderCrcAt = 20;
const std::string& Example() {
  static const std::string envelope = WrapEnvelope(EnvelopeKind::kPart, "twelve bytes");
  return envelope;
}

TEST(Envelope, RoundTrip) {
  EXPECT_EQ(Example().size(), kEnvelopeHeaderBytes + 12);
  EXPECT_EQ(Example().substr(0, 4), "ESKP");
  ASSERT_OK_AND_ASSIGN(const std::string_view body, UnwrapEnvelope(EnvelopeKind::kPart, Example()));
  EXPECT_EQ(body, "twelve bytes");
  const std::string empty = WrapEnvelope(EnvelopeKind::kRun, "");
  ASSERT_OK_AND_ASSIGN(const std::string_view nothing, UnwrapEnvelope(EnvelopeKind::kRun, empty));
  EXPECT_EQ(nothing, "");
}

TEST(Envelope, MessageRoundTrip) {
  v1::RunRecord run;
  run.set_run("llama-70b");
  run.set_attempt(3);
  const std::string envelope = EncodeEnvelope(EnvelopeKind::kRun, run);
  ASSERT_OK_AND_ASSIGN(const v1::RunRecord back, DecodeEnvelope<v1::RunRecord>(EnvelopeKind::kRun, envelope));
  EXPECT_EQ(back.run(), "llama-70b");
  EXPECT_EQ(back.attempt(), 3u);
}

TEST(Envelope, CorruptMagic) {
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithField(Example(), 0, 'X')),
                absl::StatusCode::kDataLoss, "expected the magic number \"ESKP\", found \"XSKP\"");
}

TEST(Envelope, AnotherKindIsRefused) {
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kManifest, Example()), absl::StatusCode::kDataLoss, "ESKM");
}

TEST(Envelope, CorruptLength) {
  for (const uint64_t length : {uint64_t{0}, uint64_t{11}, uint64_t{13}, ~uint64_t{0}}) {
    EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithFieldAndCrc(Example(), 8, length, kHeaderCrcAt)),
                  absl::StatusCode::kDataLoss, "expected a body of");
  }
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, Example() + "x"), absl::StatusCode::kDataLoss,
                "found 13");
}

TEST(Envelope, CorruptChecksum) {
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithField(Example(), kHeaderCrcAt, uint32_t{7})),
                absl::StatusCode::kDataLoss, "its header is damaged: it says CRC-32C 00000007");
  EXPECT_STATUS(
      UnwrapEnvelope(EnvelopeKind::kPart, WithFieldAndCrc(Example(), 16, uint32_t{7}, kHeaderCrcAt)),
      absl::StatusCode::kDataLoss, "its body is damaged: expected CRC-32C 00000007");
}

TEST(Envelope, InvalidVersion) {
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithFieldAndCrc(Example(), 4, uint16_t{2}, kHeaderCrcAt)),
                absl::StatusCode::kUnimplemented, "format version 2");
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithFieldAndCrc(Example(), 4, uint16_t{0}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "found 0");
}

TEST(Envelope, ReservedBytesMustBeZero) {
  EXPECT_STATUS(UnwrapEnvelope(EnvelopeKind::kPart, WithFieldAndCrc(Example(), 6, uint16_t{1}, kHeaderCrcAt)),
                absl::StatusCode::kDataLoss, "reserved");
}

TEST(Envelope, Truncated) {
  for (size_t size = 0; size < Example().size(); ++size) {
    EXPECT_EQ(UnwrapEnvelope(EnvelopeKind::kPart, Example().substr(0, size)).status().code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
}

TEST(Envelope, EveryFlippedBitIsRefused) {
  ForEachBitFlip(Example(), 0, Example().size(), [](const std::string& damaged, size_t bit) {
    EXPECT_EQ(UnwrapEnvelope(EnvelopeKind::kPart, damaged).status().code(), absl::StatusCode::kDataLoss)
        << bit;
  });
}

TEST(Envelope, ABodyThatIsNoMessageIsRefused) {
  const std::string envelope = WrapEnvelope(EnvelopeKind::kPart, "\x0a\xff\xff");
  EXPECT_STATUS(DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, envelope), absl::StatusCode::kDataLoss,
                "esker.v1.Part");
}

}  // namespace
}  // namespace esker
