#include "format/hash.h"

#include <isa-l/crc.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // XXH3_128bits picks AVX2 or AVX-512 at run time
#endif

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "format/base/text.h"

namespace esker {

std::string Hash128::ToHex() const { return absl::BytesToHexString(ToAbsl(AsText())); }

Hash128 HashOf(ByteView bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Hash128 hash;
  static_assert(sizeof(canonical.digest) == sizeof(hash.bytes));
  std::memcpy(hash.bytes.data(), canonical.digest, sizeof(canonical.digest));
  return hash;
}

absl::StatusOr<Hash128> HashFromBytes(std::string_view bytes, std::string_view what) {
  Hash128 hash;
  if (bytes.size() != hash.bytes.size()) {
    return absl::InvalidArgumentError(
        StrCat(what, ": expected a digest of ", hash.bytes.size(), " bytes, found ", bytes.size()));
  }
  std::memcpy(hash.bytes.data(), bytes.data(), bytes.size());
  return hash;
}

uint32_t Crc32c(ByteView bytes, uint32_t seed) {
  // ISA-L leaves the inversion before and after to its caller, and takes the length as an int.
  uint32_t state = ~seed;
  while (!bytes.empty()) {
    const size_t length = std::min<size_t>(bytes.size(), 1 << 30);
    // The parameter is not const, but only read.
    auto* from = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    state = crc32_iscsi(from, static_cast<int>(length), state);
    bytes = bytes.subspan(length);
  }
  return ~state;
}

}  // namespace esker
