#include "format/zstd_frame.h"

// For ZSTD_c_literalCompressionMode, whose number has been the same since zstd 1.3.8. A library that knows it
// not leaves planes raw: bigger, but right.
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include <memory>

#include "format/base/text.h"

namespace esker {
namespace {

constexpr uint32_t kZstdMagic = 0xFD2FB528;
constexpr int kMatchesLevel = 1;
// So low that the search for repetitions steps over whole blocks. Negative levels leave literals as they are
// unless told otherwise.
constexpr int kNoMatchesLevel = -100000;

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};
using CompressorPointer = std::unique_ptr<ZSTD_CCtx, FreeContext>;

bool Set(ZSTD_CCtx* context, ZSTD_cParameter parameter, int value) {
  return !ZSTD_isError(ZSTD_CCtx_setParameter(context, parameter, value));
}

CompressorPointer MakeCompressor(FrameEffort effort) {
  CompressorPointer made(ZSTD_createCCtx());
  if (made == nullptr || !Set(made.get(), ZSTD_c_contentSizeFlag, 1)) return nullptr;
  const bool set = effort == FrameEffort::kMatches
                       ? Set(made.get(), ZSTD_c_compressionLevel, kMatchesLevel)
                       : Set(made.get(), ZSTD_c_compressionLevel, kNoMatchesLevel) &&
                             Set(made.get(), ZSTD_c_literalCompressionMode, ZSTD_ps_enable);
  return set ? std::move(made) : nullptr;
}

ZSTD_CCtx* ThreadsCompressor(FrameEffort effort) {
  if (effort == FrameEffort::kHuffman) {
    thread_local const CompressorPointer huffman = MakeCompressor(FrameEffort::kHuffman);
    return huffman.get();
  }
  thread_local const CompressorPointer matches = MakeCompressor(FrameEffort::kMatches);
  return matches.get();
}

absl::Status Damaged(size_t result) {
  return absl::DataLossError(StrCat("a damaged frame: ", ZSTD_getErrorName(result)));
}

absl::Status CheckFrame(ByteView frame, size_t raw_bytes) {
  if (frame.size() < sizeof(kZstdMagic) || LoadLittle<uint32_t>(frame.data()) != kZstdMagic) {
    return absl::DataLossError(StrCat("the ", frame.size(), " stored bytes don't begin a zstd frame"));
  }
  const uint64_t declared = ZSTD_getFrameContentSize(frame.data(), frame.size());
  if (declared != raw_bytes) {
    const bool has_none = declared == ZSTD_CONTENTSIZE_UNKNOWN || declared == ZSTD_CONTENTSIZE_ERROR;
    return absl::DataLossError(StrCat("expected a frame of ", raw_bytes, " raw bytes, found one of ",
                                      has_none ? "unknown size" : StrCat(declared)));
  }
  const size_t frame_bytes = ZSTD_findFrameCompressedSize(frame.data(), frame.size());
  if (ZSTD_isError(frame_bytes)) return Damaged(frame_bytes);
  if (frame_bytes != frame.size()) {
    return absl::DataLossError(StrCat("expected one frame of ", frame.size(), " bytes, found one of ",
                                      frame_bytes, " and bytes behind it"));
  }
  return absl::OkStatus();
}

}  // namespace

size_t EncodeZstdFrame(FrameEffort effort, ByteView raw, MutableBytes to) {
  ZSTD_CCtx* const context = ThreadsCompressor(effort);
  if (context == nullptr) return 0;
  const size_t frame_bytes = ZSTD_compress2(context, to.data(), to.size(), raw.data(), raw.size());
  return ZSTD_isError(frame_bytes) ? 0 : frame_bytes;  // as a rule: it does not fit into the room
}

// Decoding in one pass writes straight into `raw` and needs no window buffer, and a decoding context has one
// size: nothing is allocated by what the frame says of itself.
absl::Status DecodeZstdFrame(ByteView frame, MutableBytes raw) {
  if (absl::Status status = CheckFrame(frame, raw.size()); !status.ok()) return status;
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a decoding context");
  const size_t decoded =
      ZSTD_decompressDCtx(context.get(), raw.data(), raw.size(), frame.data(), frame.size());
  if (ZSTD_isError(decoded)) return Damaged(decoded);
  if (decoded != raw.size()) {
    return absl::DataLossError(StrCat("expected ", raw.size(), " raw bytes, decoded ", decoded));
  }
  return absl::OkStatus();
}

}  // namespace esker
