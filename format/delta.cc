#include "format/delta.h"

#include <algorithm>
#include <cstring>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr size_t kCodecOffset = sizeof(Hash128);
constexpr uint64_t kSampleBytes = 64 << 10;  // of each of the two
constexpr uint64_t kAlignment = 16;          // a multiple of every element
// A delta costs a second read when it is restored, and keeps its base on the disk.
constexpr double kWorthIt = 0.95;

absl::Status NoDelta(std::string_view why) { return absl::DataLossError(StrCat("codec delta: ", why)); }

uint64_t EncodedBytes(const Codec& codec, ByteView raw, DType dtype, std::vector<std::byte>* scratch) {
  return codec.encode(raw, dtype, scratch) ? scratch->size() : raw.size();
}

// Whether the difference takes less than the chunk itself.
bool DiffersLittle(const Codec& codec, ByteView raw, ByteView difference, DType dtype,
                   std::vector<std::byte>* scratch) {
  const uint64_t bytes = std::min<uint64_t>(raw.size(), kSampleBytes);
  uint64_t alone = 0;
  uint64_t as_delta = 0;
  // At a quarter and at three quarters: several tensors may share a chunk.
  for (const uint64_t middle : {raw.size() / 4, raw.size() / 4 * 3}) {
    const uint64_t begin = std::min(middle, raw.size() - bytes) / kAlignment * kAlignment;
    alone += EncodedBytes(codec, raw.subspan(begin, bytes), dtype, scratch);
    as_delta += EncodedBytes(codec, difference.subspan(begin, bytes), dtype, scratch);
  }
  return static_cast<double>(as_delta) < kWorthIt * static_cast<double>(alone);
}

}  // namespace

absl::StatusOr<Delta> ParseDelta(ByteView stored) {
  if (stored.size() <= kDeltaHeaderBytes) {
    return NoDelta(StrCat("expected more than ", kDeltaHeaderBytes, " stored bytes, found ", stored.size()));
  }
  Delta delta;
  std::memcpy(delta.base.bytes.data(), stored.data(), sizeof(delta.base));
  const ByteView reserved = stored.subspan(kCodecOffset + 1, kDeltaHeaderBytes - kCodecOffset - 1);
  if (std::any_of(reserved.begin(), reserved.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return NoDelta("expected 0 in the reserved bytes");
  }
  const auto number = static_cast<uint8_t>(stored[kCodecOffset]);
  delta.codec = FindCodec(static_cast<CodecId>(number));
  if (delta.codec == nullptr) {
    return NoDelta(StrCat("its difference has codec ", number, ", which is not in the table"));
  }
  delta.difference = stored.subspan(kDeltaHeaderBytes);
  return delta;
}

bool EncodeDelta(const Codec& codec, ByteView raw, ByteView base, const Hash128& base_hash, DType dtype,
                 std::vector<std::byte>* to) {
  ESKER_CHECK(raw.size() == base.size());
  to->clear();
  thread_local std::vector<std::byte> difference;
  thread_local std::vector<std::byte> encoded;
  difference.assign(raw.begin(), raw.end());
  XorInto(difference, base);
  if (!DiffersLittle(codec, raw, difference, dtype, &encoded)) return false;
  if (!codec.encode(difference, dtype, &encoded)) return false;
  if (kDeltaHeaderBytes + encoded.size() >= raw.size()) return false;
  to->resize(kDeltaHeaderBytes + encoded.size());
  std::memcpy(to->data(), base_hash.bytes.data(), sizeof(base_hash));
  std::memset(to->data() + kCodecOffset, 0, kDeltaHeaderBytes - kCodecOffset);
  (*to)[kCodecOffset] = static_cast<std::byte>(codec.id);
  std::memcpy(to->data() + kDeltaHeaderBytes, encoded.data(), encoded.size());
  return true;
}

void XorInto(MutableBytes to, ByteView with) {
  ESKER_CHECK(to.size() == with.size());
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= to.size(); at += sizeof(uint64_t)) {
    StoreLittle(to.data() + at,
                LoadLittle<uint64_t>(to.data() + at) ^ LoadLittle<uint64_t>(with.data() + at));
  }
  for (; at < to.size(); ++at) to[at] ^= with[at];
}

}  // namespace esker
