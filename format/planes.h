// The codec `planes`: the elements' bytes by significance, each byte plane stored as suits it. Of floats only
// the plane of exponents shrinks, to a third; the rest is noise, and is not put through a compressor.
//
// A chunk is cut into blocks of 128 KiB, each decoded by itself.
//
//   0  u8      rotation: by how many bits each element was rotated left
//   1  u8[3]   reserved, 0
//   4  u32[]   for each block, for each of its planes from the lowest byte: stored bytes in bits 0 to 23,
//              kind in bits 24 to 31
//   .. u8[]    the stored bytes of each plane, in the same order
//
// The table's length follows from the dtype and the raw bytes. Little-endian.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "format/base/bytes.h"
#include "format/dtype.h"

namespace esker {

inline constexpr uint64_t kPlanesBlockBytes = 128 << 10;

// How a plane of a block is stored. The numbers are stored: never change or reuse one.
enum class PlaneKind : uint8_t {
  kRaw = 0,
  kConstant = 1,  // one byte: all of the plane are that
  kFrame = 2,     // a zstd frame (zstd_frame.h), smaller than the plane
};

// As Codec::encode and Codec::decode (codec.h).
bool EncodePlanes(ByteView raw, DType dtype, std::vector<std::byte>* to);
absl::Status DecodePlanes(ByteView stored, DType dtype, MutableBytes raw);

// Decodes `to.size()` of the chunk's `raw_bytes`, from `offset` on, reading only the blocks that they lie in.
// The chunk's hash covers all of it: who takes a part must know otherwise that it is right. A restore does
// not, and decodes whole chunks.
absl::Status DecodePlanesRange(ByteView stored, DType dtype, uint64_t raw_bytes, uint64_t offset,
                               MutableBytes to);

}  // namespace esker
