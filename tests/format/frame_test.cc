#include "format/frame.h"

#include "tests/format/tamper.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using testing::WithField;

constexpr uint64_t kTag = 0x1122334455667788;

ChunkInfo ExampleInfo() {
  ChunkInfo info;
  info.hash = HashOf(AsBytes("a chunk"));
  info.codec = CodecId::kZstd;
  info.dtype = DType::kBF16;
  info.raw_bytes = 4 << 20;
  info.stored_bytes = 1234567;
  info.stored_crc32c = 0xCAFEF00D;
  return info;
}

TEST(Frame, HelloRoundTrip) {
  const std::string frame = EncodeHello("a save context");
  ASSERT_OK_AND_ASSIGN(const std::string_view body, DecodeHello(AsBytes(frame)));
  EXPECT_EQ(body, "a save context");
  EXPECT_STATUS(DecodeHello(AsBytes(frame + std::string(4096, 'x'))), absl::StatusCode::kInvalidArgument,
                "at most 4096");
}

TEST(Frame, ChunkRoundTrip) {
  const std::string frame = EncodeChunkFrame(kTag, ExampleInfo());
  EXPECT_EQ(frame.size(), kChunkFrameBytes);
  ASSERT_OK_AND_ASSIGN(const FramePrefix prefix, DecodeFramePrefix(AsBytes(frame)));
  EXPECT_EQ(prefix.type, FrameType::kChunk);
  EXPECT_EQ(prefix.tag, kTag);
  ASSERT_OK_AND_ASSIGN(const ChunkInfo info, DecodeChunkFrame(AsBytes(frame)));
  EXPECT_EQ(info, ExampleInfo());
}

TEST(Frame, WantRoundTrip) {
  const Hash128 hash = HashOf(AsBytes("wanted"));
  const std::string frame = EncodeWant(kTag, hash);
  ASSERT_OK_AND_ASSIGN(const Hash128 back, DecodeWant(AsBytes(frame)));
  EXPECT_EQ(back, hash);
}

TEST(Frame, StatusRoundTrip) {
  for (const absl::Status& sent :
       {absl::OkStatus(), absl::DataLossError("chunk 3 is damaged"), absl::AbortedError("")}) {
    absl::Status received = absl::UnknownError("nothing came");
    ASSERT_OK(DecodeStatusFrame(AsBytes(EncodeAck(kTag, sent)), &received));
    EXPECT_EQ(received, sent);
    if (sent.ok()) continue;
    ASSERT_OK(DecodeStatusFrame(AsBytes(EncodeErrorFrame(kTag, sent)), &received));
    EXPECT_EQ(received, sent);
  }
}

TEST(Frame, ALongMessageIsCutToTheLimit) {
  const std::string frame = EncodeAck(kTag, absl::InternalError(std::string(100000, 'm')));
  EXPECT_EQ(frame.size(), kMaxControlFrameBytes);
  absl::Status received;
  ASSERT_OK(DecodeStatusFrame(AsBytes(frame), &received));
  EXPECT_EQ(received.message().size(), kMaxControlFrameBytes - 24);
}

// CorruptMagic of a frame: its type.
TEST(Frame, CorruptType) {
  const std::string want = EncodeWant(kTag, Hash128());
  for (const int type : {0, 6, 255}) {
    EXPECT_STATUS(DecodeFramePrefix(AsBytes(WithField(want, 0, static_cast<uint8_t>(type)))),
                  absl::StatusCode::kInvalidArgument, "expected type 1 to 5");
  }
  EXPECT_STATUS(DecodeFramePrefix(AsBytes(WithField(want, 5, uint8_t{1}))),
                absl::StatusCode::kInvalidArgument, "bytes 1 to 7");
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(want)), absl::StatusCode::kInvalidArgument,
                "expected type 2, found 4");
  EXPECT_STATUS(DecodeHello(AsBytes(want)), absl::StatusCode::kInvalidArgument, "expected type 1");
  absl::Status carried;
  EXPECT_STATUS(DecodeStatusFrame(AsBytes(want), &carried), absl::StatusCode::kInvalidArgument,
                "found type 4");
}

TEST(Frame, CorruptLength) {
  const std::string chunk = EncodeChunkFrame(kTag, ExampleInfo());
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(chunk + "x")), absl::StatusCode::kInvalidArgument, "found 57");
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(WithField(chunk, 24, kMaxChunkBytes + 2))),
                absl::StatusCode::kInvalidArgument, "4194306");
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(WithField(chunk, 32, ~uint64_t{0}))),
                absl::StatusCode::kInvalidArgument, "stored bytes");
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(WithField(chunk, 18, uint16_t{1}))),
                absl::StatusCode::kInvalidArgument, "18 and 19");
  EXPECT_STATUS(DecodeChunkFrame(AsBytes(WithField(chunk, 16, uint8_t{77}))),
                absl::StatusCode::kInvalidArgument, "codec number 77");
  const std::string ack = EncodeAck(kTag, absl::AbortedError("gone"));
  absl::Status carried;
  EXPECT_STATUS(DecodeStatusFrame(AsBytes(WithField(ack, 20, uint32_t{5})), &carried),
                absl::StatusCode::kInvalidArgument, "expected 29 bytes, found 28");
  EXPECT_STATUS(DecodeStatusFrame(AsBytes(WithField(ack, 20, ~uint32_t{0})), &carried),
                absl::StatusCode::kInvalidArgument, "found 28");
}

TEST(Frame, AnUnknownStatusCodeIsRefused) {
  const std::string ack = EncodeAck(kTag, absl::AbortedError("gone"));
  absl::Status carried;
  EXPECT_STATUS(DecodeStatusFrame(AsBytes(WithField(ack, 16, uint32_t{17})), &carried),
                absl::StatusCode::kInvalidArgument, "found 17");
  const std::string error = EncodeErrorFrame(kTag, absl::AbortedError("gone"));
  EXPECT_STATUS(DecodeStatusFrame(AsBytes(WithField(error, 16, uint32_t{0})), &carried),
                absl::StatusCode::kInvalidArgument, "says OK");
}

TEST(Frame, Truncated) {
  absl::Status carried;
  const std::string chunk = EncodeChunkFrame(kTag, ExampleInfo());
  for (size_t size = 0; size < chunk.size(); ++size) {
    EXPECT_EQ(DecodeChunkFrame(AsBytes(chunk.substr(0, size))).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  const std::string want = EncodeWant(kTag, Hash128());
  for (size_t size = 0; size < want.size(); ++size) {
    EXPECT_EQ(DecodeWant(AsBytes(want.substr(0, size))).status().code(), absl::StatusCode::kInvalidArgument);
  }
  const std::string ack = EncodeAck(kTag, absl::AbortedError("gone"));
  for (size_t size = 0; size < ack.size(); ++size) {
    EXPECT_EQ(DecodeStatusFrame(AsBytes(ack.substr(0, size)), &carried).code(),
              absl::StatusCode::kInvalidArgument);
  }
  for (size_t size = 0; size < kFramePrefixBytes; ++size) {
    EXPECT_EQ(DecodeHello(AsBytes(EncodeHello("").substr(0, size))).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace esker
