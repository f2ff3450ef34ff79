#include "format/codec.h"

#include <algorithm>
#include <array>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/planes.h"
#include "format/zstd_frame.h"

namespace esker {
namespace {

bool EncodeRaw(ByteView, DType, std::vector<std::byte>* to) {
  to->clear();
  return false;  // never smaller
}

absl::Status DecodeRaw(ByteView stored, DType, MutableBytes raw) {
  if (stored.size() != raw.size()) {
    return absl::DataLossError(StrCat("codec raw: expected ", raw.size(),
                                      " stored bytes, as many as raw ones, found ", stored.size()));
  }
  std::copy(stored.begin(), stored.end(), raw.begin());
  return absl::OkStatus();
}

bool EncodeZstd(ByteView raw, DType, std::vector<std::byte>* to) {
  if (raw.size() < 2) {
    to->clear();
    return false;
  }
  // Resized without clearing first: what it held may stay, so that a reused buffer is not filled with zeros
  // each time.
  to->resize(raw.size() - 1);
  to->resize(EncodeZstdFrame(FrameEffort::kMatches, raw, *to));
  return !to->empty();
}

absl::Status DecodeZstd(ByteView stored, DType, MutableBytes raw) {
  return Annotate(DecodeZstdFrame(stored, raw), "codec zstd");
}

constexpr std::array kCodecs = {
    Codec{CodecId::kRaw, "raw", EncodeRaw, DecodeRaw},
    Codec{CodecId::kZstd, "zstd", EncodeZstd, DecodeZstd},
    Codec{CodecId::kPlanes, "planes", EncodePlanes, DecodePlanes},
};

}  // namespace

const Codec* FindCodec(CodecId id) {
  for (const Codec& codec : kCodecs) {
    if (codec.id == id) return &codec;
  }
  return nullptr;
}

const Codec* FindCodec(std::string_view name) {
  for (const Codec& codec : kCodecs) {
    if (codec.name == name) return &codec;
  }
  return nullptr;
}

std::optional<CodecId> CodecFromNumber(uint64_t number) {
  for (const Codec& codec : kCodecs) {
    if (static_cast<uint64_t>(codec.id) == number) return codec.id;
  }
  if (number == static_cast<uint64_t>(CodecId::kDelta)) return CodecId::kDelta;
  return std::nullopt;
}

std::string_view CodecName(CodecId id) {
  if (id == CodecId::kDelta) return "delta";
  const Codec* const codec = FindCodec(id);
  ESKER_CHECK(codec != nullptr);
  return codec->name;
}

std::span<const Codec> AllCodecs() { return kCodecs; }

}  // namespace esker
