// The two checksums: XXH3-128 names content, CRC-32C guards stored bytes.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"

namespace esker {

// An XXH3-128 digest in its canonical (big-endian) byte order, as `xxh128sum` prints it. Regular type;
// ordered by bytes.
struct Hash128 {
  std::array<uint8_t, 16> bytes{};

  auto operator<=>(const Hash128&) const = default;
  std::string ToHex() const;  // 32 lower-case digits
  std::string_view AsText() const { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

  template <typename H>
  friend H AbslHashValue(H h, const Hash128& hash) {
    return H::combine(std::move(h), hash.bytes);
  }
};
static_assert(sizeof(Hash128) == 16);

// XXH3-128 with seed 0. Guards against accident, not against an attacker who seeks collisions.
Hash128 HashOf(ByteView bytes);

// Both checksums of the same bytes, which are read from memory once: piece by piece, in the caches.
struct Checksums {
  Hash128 hash;
  uint32_t crc32c = 0;
};
Checksums ChecksumsOf(ByteView bytes);

// Copies the pieces, one behind the other, and hashes the copy, piece by piece while it is in the caches:
// what has the hash is what is in `to`, whatever becomes of the source meanwhile. `to` is as long as they are
// together.
Hash128 CopyAndHash(std::span<const ByteView> pieces, MutableBytes to);

// From exactly 16 bytes; kInvalidArgument otherwise, naming `what`.
absl::StatusOr<Hash128> HashFromBytes(std::string_view bytes, std::string_view what);

// CRC-32C (Castagnoli), as in iSCSI and RFC 3720. `seed` is the result for the bytes before, 0 at the start.
uint32_t Crc32c(ByteView bytes, uint32_t seed = 0);

}  // namespace esker
