// What flows on the raw streams PutChunks and GetChunks (service.proto): messages of bytes, without protobuf.
//
// A chunk is a head message and then its stored bytes, in as many body messages as the sender likes (about
// kBodyBytes each). Everything else is one message. Each message but a body begins with:
//   0  u8   type
//   1  u8[7] 0
//   8  u64  tag: chosen by whoever asks, repeated in the answer
//
// PutChunks, client -> server: kHello{SaveContext protobuf}, then for each chunk kChunk and its body.
//            server -> client: for each chunk kAck, in any order.
// GetChunks, client -> server: kHello{OpenRead's lease: u64}, then kWant for each chunk.
//            server -> client: for each wanted chunk kChunk and its body, or kError; in the order asked for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/chunk_record.h"

namespace esker {

inline constexpr uint64_t kFrameBodyBytes = 1 << 20;
inline constexpr uint64_t kFramePrefixBytes = 16;
// The longest kHello, kAck and kError.
inline constexpr uint64_t kMaxControlFrameBytes = 4096;
// What either side lets a stream send ahead (its HTTP/2 window). Fixed: gRPC's own estimate grows to many
// times what a stream needs, and all of it is memory.
inline constexpr int kStreamWindowBytes = 4 << 20;

enum class FrameType : uint8_t { kHello = 1, kChunk = 2, kAck = 3, kWant = 4, kError = 5 };

struct FramePrefix {
  FrameType type = FrameType::kHello;
  uint64_t tag = 0;
};

// kInvalidArgument if it is too short or of no known type.
absl::StatusOr<FramePrefix> DecodeFramePrefix(ByteView frame);

// kHello: the prefix, then `body`.
std::string EncodeHello(std::string_view body);
absl::StatusOr<std::string_view> DecodeHello(ByteView frame);

// kChunk: 16 u8 codec · 17 u8 dtype · 18 u16 0 · 20 u32 CRC-32C of the stored bytes · 24 u64 raw bytes ·
// 32 u64 stored bytes · 40 u8[16] hash. 56 bytes.
inline constexpr uint64_t kChunkFrameBytes = 56;
std::string EncodeChunkFrame(uint64_t tag, const ChunkInfo& info);
// kInvalidArgument unless it is whole and ValidateChunkInfo holds.
absl::StatusOr<ChunkInfo> DecodeChunkFrame(ByteView frame);

// kAck: 16 u32 absl::StatusCode · 20 u32 message bytes · 24 the message. Also kError's form.
std::string EncodeAck(uint64_t tag, const absl::Status& status);
std::string EncodeErrorFrame(uint64_t tag, const absl::Status& status);
// The status carried by kAck or kError goes to *status; the returned status says whether the frame was whole.
absl::Status DecodeStatusFrame(ByteView frame, absl::Status* status);

// kWant: 16 u8[16] hash.
std::string EncodeWant(uint64_t tag, const Hash128& hash);
absl::StatusOr<Hash128> DecodeWant(ByteView frame);

}  // namespace esker
