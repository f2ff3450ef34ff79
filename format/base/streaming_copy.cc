#include "format/base/streaming_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace esker {

#ifdef __SSE2__

namespace {

constexpr size_t kLineBytes = 64;
// Several places that far apart are copied in turns: more reads are on their way at a time than from one
// place, whose prefetching ends at each page. (As glibc's memcpy does for the largest copies alone.)
constexpr size_t kStride = 4096;
constexpr size_t kPlaces = 8;
constexpr size_t kTurnLines = 2;

template <size_t kLines>
void StreamLines(std::byte* to, const std::byte* from) {
  __m128i line[4 * kLines];
  std::memcpy(line, from, sizeof(line));
  for (size_t i = 0; i < 4 * kLines; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, line[i]);
}

void StreamInTurns(std::byte* to, const std::byte* from) {
  constexpr size_t kTurnBytes = kTurnLines * kLineBytes;
  for (size_t offset = 0; offset < kStride; offset += kTurnBytes) {
    for (size_t place = offset; place < kPlaces * kStride; place += kStride) {
      // Of the next turn; behind the end it is harmless.
      for (size_t line = 0; line < kTurnLines; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(from + place + kTurnBytes + line * kLineBytes),
                     _MM_HINT_T0);
      }
      StreamLines<kTurnLines>(to + place, from + place);
    }
  }
}

}  // namespace

void StreamingCopy(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  // Whole cache lines are streamed; a line that is written in part is not worth it.
  const size_t misaligned = reinterpret_cast<uintptr_t>(target) % kLineBytes;
  const size_t head = std::min(bytes, misaligned == 0 ? 0 : kLineBytes - misaligned);
  if (head > 0) std::memcpy(target, source, head);
  size_t at = head;
  for (; at + kPlaces * kStride <= bytes; at += kPlaces * kStride) StreamInTurns(target + at, source + at);
  for (; at + kLineBytes <= bytes; at += kLineBytes) StreamLines<1>(target + at, source + at);
  if (at < bytes) std::memcpy(target + at, source + at, bytes - at);
  // Before whoever is told of the copy, on another core, looks at it.
  _mm_sfence();
}

#else

void StreamingCopy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

#endif

}  // namespace esker
