// A chunk as it lies in a segment: a header, zeros up to payload_offset, the stored bytes, zeros up to the
// next block. The record begins at a multiple of kRecordAlignment. Little-endian.
//
//   0  u32  magic "ESKC"
//   4  u16  format version
//   6  u8   codec (codec.h)
//   7  u8   dtype (dtype.h)
//   8  u32  payload_offset: from the record's start to the stored bytes
//  12  u32  CRC-32C of the stored bytes
//  16  u64  raw bytes
//  24  u64  stored bytes
//  32  u8[16] XXH3-128 of the raw bytes: the chunk's name
//  48  u64  segment id
//  56  u64  segment generation: a record of an earlier use of the segment is told apart
//  64  u64  offset of this record in the segment
//  72  u32  reserved, 0
//  76  u32  CRC-32C of bytes 0..75
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/codec.h"
#include "format/dtype.h"
#include "format/hash.h"

namespace esker {

inline constexpr uint64_t kRecordAlignment = 4096;
inline constexpr uint64_t kChunkHeaderBytes = 80;
// The largest chunk, raw. A stored chunk is never larger than raw: what a codec does not shrink is stored
// raw.
inline constexpr uint64_t kMaxChunkBytes = 4 << 20;

// What a chunk is, wherever it lies: also the head of a chunk on the wire (frame.h).
struct ChunkInfo {
  Hash128 hash;
  CodecId codec = CodecId::kRaw;
  DType dtype = DType::kBytes;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  uint32_t stored_crc32c = 0;

  bool operator==(const ChunkInfo&) const = default;
};

// Checks the lengths against each other and kMaxChunkBytes, codec and dtype against the tables.
// kInvalidArgument.
absl::Status ValidateChunkInfo(const ChunkInfo& info);

// Where a record lies: its identity, checked on each read.
struct RecordPlace {
  uint64_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t offset = 0;

  bool operator==(const RecordPlace&) const = default;
};

// Where the stored bytes begin: a block of their own for large chunks, so that they can be written and read
// without a copy, and right behind the header for small ones, so that these take one block.
uint64_t PayloadOffset(uint64_t stored_bytes);
// The whole record's length, a multiple of kRecordAlignment.
uint64_t RecordBytes(uint64_t stored_bytes);

struct ChunkHeader {
  ChunkInfo info;
  RecordPlace place;
  uint32_t payload_offset = 0;
};

// Writes the header and the zeros up to payload_offset into `to`, which holds at least
// PayloadOffset(info.stored_bytes).
void EncodeChunkHeader(const ChunkInfo& info, const RecordPlace& place, MutableBytes to);

// kDataLoss if it is cut short or damaged or its lengths contradict each other, kUnimplemented if of a newer
// version.
absl::StatusOr<ChunkHeader> DecodeChunkHeader(ByteView from);

// Checks a whole record against where it should lie and which chunk it should be: header, identity, name, and
// the CRC-32C of the stored bytes. Returns its header. kDataLoss says what differs.
absl::StatusOr<ChunkHeader> CheckRecord(ByteView record, const RecordPlace& place, const Hash128& hash);

}  // namespace esker
