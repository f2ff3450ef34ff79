#include "format/frame.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr size_t kTagAt = 8;
constexpr size_t kStatusHeaderBytes = 24;
constexpr size_t kWantBytes = 32;

// kChunk as it is sent. Little-endian hosts only (base/bytes.h), so it is copied as it is.
struct RawChunkFrame {
  uint8_t type;
  uint8_t zeros[7];
  uint64_t tag;
  uint8_t codec;
  uint8_t dtype;
  uint16_t reserved;
  uint32_t stored_crc32c;
  uint64_t raw_bytes;
  uint64_t stored_bytes;
  uint8_t hash[16];
};
static_assert(sizeof(RawChunkFrame) == kChunkFrameBytes);
static_assert(offsetof(RawChunkFrame, tag) == kTagAt);
static_assert(offsetof(RawChunkFrame, codec) == kFramePrefixBytes);
static_assert(offsetof(RawChunkFrame, dtype) == 17);
static_assert(offsetof(RawChunkFrame, reserved) == 18);
static_assert(offsetof(RawChunkFrame, stored_crc32c) == 20);
static_assert(offsetof(RawChunkFrame, raw_bytes) == 24);
static_assert(offsetof(RawChunkFrame, stored_bytes) == 32);
static_assert(offsetof(RawChunkFrame, hash) == 40);

absl::Status InvalidFrame(std::string_view what) {
  return absl::InvalidArgumentError(StrCat("frame: ", what));
}

std::string EncodePrefix(FrameType type, uint64_t tag) {
  std::string frame(kFramePrefixBytes, '\0');
  frame[0] = static_cast<char>(type);
  StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(frame.data()) + kTagAt, tag);
  return frame;
}

template <typename T>
void AppendLittle(std::string* to, T value) {
  std::array<std::byte, sizeof(T)> bytes;
  StoreLittle<T>(bytes.data(), value);
  to->append(AsText(bytes));
}

// The prefix of a frame that should be of this type.
absl::Status ExpectType(ByteView frame, FrameType type) {
  ESKER_ASSIGN_OR_RETURN(const FramePrefix prefix, DecodeFramePrefix(frame));
  if (prefix.type != type) {
    return InvalidFrame(
        StrCat("expected type ", static_cast<int>(type), ", found ", static_cast<int>(prefix.type)));
  }
  return absl::OkStatus();
}

absl::Status ExpectBytes(ByteView frame, size_t expected) {
  if (frame.size() == expected) return absl::OkStatus();
  return InvalidFrame(StrCat("expected ", expected, " bytes, found ", frame.size()));
}

std::string EncodeStatusFrame(FrameType type, uint64_t tag, const absl::Status& status) {
  std::string frame = EncodePrefix(type, tag);
  const std::string_view message = MessageOf(status).substr(0, kMaxControlFrameBytes - kStatusHeaderBytes);
  AppendLittle<uint32_t>(&frame, static_cast<uint32_t>(status.code()));
  AppendLittle<uint32_t>(&frame, static_cast<uint32_t>(message.size()));
  frame.append(message);
  return frame;
}

}  // namespace

absl::StatusOr<FramePrefix> DecodeFramePrefix(ByteView frame) {
  if (frame.size() < kFramePrefixBytes) {
    return InvalidFrame(StrCat("expected at least ", kFramePrefixBytes, " bytes, found ", frame.size()));
  }
  const auto type = LoadLittle<uint8_t>(frame.data());
  if (type < static_cast<uint8_t>(FrameType::kHello) || type > static_cast<uint8_t>(FrameType::kError)) {
    return InvalidFrame(StrCat("expected type 1 to 5, found ", type));
  }
  const ByteView zeros = frame.subspan(1, kTagAt - 1);
  if (!std::all_of(zeros.begin(), zeros.end(), [](std::byte b) { return b == std::byte{0}; })) {
    return InvalidFrame("expected 0 in bytes 1 to 7");
  }
  return FramePrefix{static_cast<FrameType>(type), LoadLittle<uint64_t>(frame.data() + kTagAt)};
}

std::string EncodeHello(std::string_view body) {
  ESKER_CHECK(kFramePrefixBytes + body.size() <= kMaxControlFrameBytes);
  return EncodePrefix(FrameType::kHello, 0).append(body);
}

absl::StatusOr<std::string_view> DecodeHello(ByteView frame) {
  ESKER_RETURN_IF_ERROR(ExpectType(frame, FrameType::kHello));
  if (frame.size() > kMaxControlFrameBytes) {
    return InvalidFrame(
        StrCat("expected a hello of at most ", kMaxControlFrameBytes, " bytes, found ", frame.size()));
  }
  return AsText(frame.subspan(kFramePrefixBytes));
}

std::string EncodeChunkFrame(uint64_t tag, const ChunkInfo& info) {
  RawChunkFrame raw = {};
  raw.type = static_cast<uint8_t>(FrameType::kChunk);
  raw.tag = tag;
  raw.codec = static_cast<uint8_t>(info.codec);
  raw.dtype = static_cast<uint8_t>(info.dtype);
  raw.stored_crc32c = info.stored_crc32c;
  raw.raw_bytes = info.raw_bytes;
  raw.stored_bytes = info.stored_bytes;
  std::memcpy(raw.hash, info.hash.bytes.data(), sizeof(raw.hash));
  return std::string(AsText(std::as_bytes(std::span(&raw, 1))));
}

absl::StatusOr<ChunkInfo> DecodeChunkFrame(ByteView frame) {
  ESKER_RETURN_IF_ERROR(ExpectType(frame, FrameType::kChunk));
  ESKER_RETURN_IF_ERROR(ExpectBytes(frame, kChunkFrameBytes));
  RawChunkFrame raw;
  std::memcpy(&raw, frame.data(), sizeof(raw));
  if (raw.reserved != 0) return InvalidFrame(StrCat("expected 0 in bytes 18 and 19, found ", raw.reserved));
  ChunkInfo info;
  info.codec = static_cast<CodecId>(raw.codec);
  info.dtype = static_cast<DType>(raw.dtype);
  info.raw_bytes = raw.raw_bytes;
  info.stored_bytes = raw.stored_bytes;
  info.stored_crc32c = raw.stored_crc32c;
  std::memcpy(info.hash.bytes.data(), raw.hash, sizeof(raw.hash));
  ESKER_RETURN_IF_ERROR(ValidateChunkInfo(info));
  return info;
}

std::string EncodeAck(uint64_t tag, const absl::Status& status) {
  return EncodeStatusFrame(FrameType::kAck, tag, status);
}

std::string EncodeErrorFrame(uint64_t tag, const absl::Status& status) {
  ESKER_CHECK(!status.ok());
  return EncodeStatusFrame(FrameType::kError, tag, status);
}

absl::Status DecodeStatusFrame(ByteView frame, absl::Status* status) {
  ESKER_ASSIGN_OR_RETURN(const FramePrefix prefix, DecodeFramePrefix(frame));
  if (prefix.type != FrameType::kAck && prefix.type != FrameType::kError) {
    return InvalidFrame(
        StrCat("expected an acknowledgement or an error, found type ", static_cast<int>(prefix.type)));
  }
  if (frame.size() < kStatusHeaderBytes || frame.size() > kMaxControlFrameBytes) {
    return InvalidFrame(StrCat("expected ", kStatusHeaderBytes, " to ", kMaxControlFrameBytes,
                               " bytes, found ", frame.size()));
  }
  const auto code = LoadLittle<uint32_t>(frame.data() + kFramePrefixBytes);
  if (code > static_cast<uint32_t>(absl::StatusCode::kUnauthenticated)) {
    return InvalidFrame(StrCat("expected a status code of 0 to 16, found ", code));
  }
  if (prefix.type == FrameType::kError && code == 0) return InvalidFrame("an error frame says OK");
  const auto message_bytes = LoadLittle<uint32_t>(frame.data() + kFramePrefixBytes + sizeof(code));
  ESKER_RETURN_IF_ERROR(ExpectBytes(frame, kStatusHeaderBytes + uint64_t{message_bytes}));
  *status =
      absl::Status(static_cast<absl::StatusCode>(code), ToAbsl(AsText(frame.subspan(kStatusHeaderBytes))));
  return absl::OkStatus();
}

std::string EncodeWant(uint64_t tag, const Hash128& hash) {
  return EncodePrefix(FrameType::kWant, tag).append(hash.AsText());
}

absl::StatusOr<Hash128> DecodeWant(ByteView frame) {
  ESKER_RETURN_IF_ERROR(ExpectType(frame, FrameType::kWant));
  ESKER_RETURN_IF_ERROR(ExpectBytes(frame, kWantBytes));
  return HashFromBytes(AsText(frame.subspan(kFramePrefixBytes)), "frame");
}

}  // namespace esker
