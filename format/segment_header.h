// The first block of a segment file. The rest of the block is zeros.
//
//   0  u32  magic "ESKS"
//   4  u16  format version
//   6  u16  reserved, 0
//   8  u8[16] store id: the data directory's UUID
//  24  u64  segment id
//  32  u64  generation: grows by one each time the segment is recycled
//  40  u64  segment bytes: the file's fixed size
//  48  i64  created, Unix ms
//  56  u32  reserved, 0
//  60  u32  CRC-32C of bytes 0..59
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"

namespace esker {

inline constexpr uint64_t kSegmentHeaderBytes = 64;
// Records begin behind the header's block.
inline constexpr uint64_t kFirstRecordOffset = 4096;

struct SegmentHeader {
  std::array<uint8_t, 16> store_id{};
  uint64_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t segment_bytes = 0;
  int64_t created_unix_ms = 0;

  bool operator==(const SegmentHeader&) const = default;
};

// Writes the header and zeros up to kFirstRecordOffset; `to` is at least that long.
void EncodeSegmentHeader(const SegmentHeader& header, MutableBytes to);
// kDataLoss if it is cut short or damaged, kUnimplemented if of a newer version.
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ByteView from);

// "segment-0000000000000007.esk"
std::string SegmentFileName(uint64_t segment_id);
// The id, or nothing if the name is not a segment's.
std::optional<uint64_t> SegmentIdFromFileName(std::string_view name);

}  // namespace esker
