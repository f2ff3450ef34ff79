// A chunk that is stored as its difference from another one, its base: training changes the low bits of a
// weight, so the XOR of two steps has zeros where a float is hardest to compress.
//
//   0  u8[16]  hash of the base: the chunk of the same length that is to be XORed with
//  16  u8      codec of the difference (codec.h)
//  17  u8[7]   reserved, 0
//  24  u8[]    the difference, as that codec stores it
//
// A base is never a delta itself, so two reads give any chunk. Decoding needs another chunk, and so this is
// no row of the codec table.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/codec.h"
#include "format/dtype.h"
#include "format/hash.h"

namespace esker {

inline constexpr uint64_t kDeltaHeaderBytes = 24;

struct Delta {
  Hash128 base;
  const Codec* codec = nullptr;  // of the difference
  ByteView difference;           // as it is stored
};

// kDataLoss says what is wrong with it.
absl::StatusOr<Delta> ParseDelta(ByteView stored);

// Encodes the difference of `raw` and `base`, which have the same length, into `to`, which is cleared first.
// Returns false if that is not worth a base: if, by two samples, `codec` alone makes `raw` nearly as small.
// Thread-safe; keeps scratch memory of the chunk's size per thread.
bool EncodeDelta(const Codec& codec, ByteView raw, ByteView base, const Hash128& base_hash, DType dtype,
                 std::vector<std::byte>* to);

// XORs `with`, of the same length, into `to`.
void XorInto(MutableBytes to, ByteView with);

}  // namespace esker
