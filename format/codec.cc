#include "format/codec.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "format/base/status.h"
#include "format/base/text.h"

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

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

constexpr int kZstdLevel = 1;
constexpr uint32_t kZstdMagic = 0xFD2FB528;

ZSTD_CCtx* ThreadsCompressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, FreeContext> context = [] {
    std::unique_ptr<ZSTD_CCtx, FreeContext> made(ZSTD_createCCtx());
    if (made != nullptr) {
      ESKER_CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(made.get(), ZSTD_c_compressionLevel, kZstdLevel)));
      ESKER_CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(made.get(), ZSTD_c_contentSizeFlag, 1)));
    }
    return made;
  }();
  return context.get();
}

bool EncodeZstd(ByteView raw, DType, std::vector<std::byte>* to) {
  ZSTD_CCtx* context = ThreadsCompressor();
  if (context == nullptr || raw.size() < 2) {
    to->clear();
    return false;
  }
  // Resized without clearing first: what it held may stay, so that a reused buffer is not filled with zeros
  // each time.
  to->resize(raw.size() - 1);
  const size_t stored_bytes = ZSTD_compress2(context, to->data(), to->size(), raw.data(), raw.size());
  if (ZSTD_isError(stored_bytes)) {  // as a rule: it does not fit into the room
    to->clear();
    return false;
  }
  to->resize(stored_bytes);
  return true;
}

// Nothing is allocated by what the frame says of itself: decoding in one pass writes straight into `raw` and
// needs no window buffer, and a decoding context has one size.
absl::Status DecodeZstd(ByteView stored, DType, MutableBytes raw) {
  if (stored.size() < sizeof(kZstdMagic) || LoadLittle<uint32_t>(stored.data()) != kZstdMagic) {
    return absl::DataLossError(
        StrCat("codec zstd: the ", stored.size(), " stored bytes don't begin a zstd frame"));
  }
  const uint64_t declared = ZSTD_getFrameContentSize(stored.data(), stored.size());
  if (declared != raw.size()) {
    const bool has_none = declared == ZSTD_CONTENTSIZE_UNKNOWN || declared == ZSTD_CONTENTSIZE_ERROR;
    return absl::DataLossError(StrCat("codec zstd: expected a frame of ", raw.size(),
                                      " raw bytes, found one of ",
                                      has_none ? "unknown size" : StrCat(declared)));
  }
  const size_t frame_bytes = ZSTD_findFrameCompressedSize(stored.data(), stored.size());
  if (ZSTD_isError(frame_bytes)) {
    return absl::DataLossError(StrCat("codec zstd: a damaged frame: ", ZSTD_getErrorName(frame_bytes)));
  }
  if (frame_bytes != stored.size()) {
    return absl::DataLossError(StrCat("codec zstd: expected one frame of ", stored.size(),
                                      " bytes, found one of ", frame_bytes, " and bytes behind it"));
  }
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (context == nullptr) return absl::ResourceExhaustedError("codec zstd: no memory for a decoding context");
  const size_t decoded =
      ZSTD_decompressDCtx(context.get(), raw.data(), raw.size(), stored.data(), stored.size());
  if (ZSTD_isError(decoded)) {
    return absl::DataLossError(StrCat("codec zstd: a damaged frame: ", ZSTD_getErrorName(decoded)));
  }
  if (decoded != raw.size()) {
    return absl::DataLossError(StrCat("codec zstd: expected ", raw.size(), " raw bytes, decoded ", decoded));
  }
  return absl::OkStatus();
}

constexpr std::array kCodecs = {
    Codec{CodecId::kRaw, "raw", EncodeRaw, DecodeRaw},
    Codec{CodecId::kZstd, "zstd", EncodeZstd, DecodeZstd},
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
  return std::nullopt;
}

std::span<const Codec> AllCodecs() { return kCodecs; }

}  // namespace esker
