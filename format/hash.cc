#include "format/hash.h"

#include <isa-l/crc.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // XXH3_128bits picks AVX2 or AVX-512 at run time
#endif

#include <algorithm>
#include <cstring>
#include <memory>

#include "absl/strings/escaping.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {

std::string Hash128::ToHex() const { return absl::BytesToHexString(ToAbsl(AsText())); }

namespace {

constexpr size_t kPieceBytes = 64 << 10;

Hash128 FromXxh(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Hash128 result;
  static_assert(sizeof(canonical.digest) == sizeof(result.bytes));
  std::memcpy(result.bytes.data(), canonical.digest, sizeof(canonical.digest));
  return result;
}

// XXH3-128 of bytes that come piece by piece.
class Hasher {
 public:
  Hasher() : state_(XXH3_createState(), &XXH3_freeState) {
    ESKER_CHECK(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK);
  }
  void Add(ByteView piece) { XXH3_128bits_update(state_.get(), piece.data(), piece.size()); }
  Hash128 Digest() const { return FromXxh(XXH3_128bits_digest(state_.get())); }

 private:
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace

Hash128 HashOf(ByteView bytes) { return FromXxh(XXH3_128bits(bytes.data(), bytes.size())); }

Checksums ChecksumsOf(ByteView bytes) {
  Hasher hasher;
  Checksums sums;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPieceBytes, bytes.size()))) {
    const ByteView piece = bytes.first(std::min(kPieceBytes, bytes.size()));
    hasher.Add(piece);
    sums.crc32c = Crc32c(piece, sums.crc32c);
  }
  sums.hash = hasher.Digest();
  return sums;
}

Hash128 CopyAndHash(std::span<const ByteView> pieces, MutableBytes to) {
  Hasher hasher;
  for (ByteView from : pieces) {
    for (size_t bytes = 0; !from.empty(); from = from.subspan(bytes), to = to.subspan(bytes)) {
      bytes = std::min(kPieceBytes, from.size());
      std::memcpy(to.data(), from.data(), bytes);
      hasher.Add(to.first(bytes));
    }
  }
  return hasher.Digest();
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
