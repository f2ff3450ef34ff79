#include "format/base/streaming_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace esker {

#ifdef __SSE2__

void StreamingCopy(void* to, const void* from, size_t bytes) {
  constexpr size_t kLineBytes = 64;
  auto* target = static_cast<std::byte*>(to);
  auto* source = static_cast<const std::byte*>(from);
  // Whole cache lines are streamed; a line that is written in part is not worth it.
  const size_t misaligned = reinterpret_cast<uintptr_t>(target) % kLineBytes;
  const size_t head = std::min(bytes, misaligned == 0 ? 0 : kLineBytes - misaligned);
  if (head > 0) std::memcpy(target, source, head);
  size_t at = head;
  for (; at + kLineBytes <= bytes; at += kLineBytes) {
    __m128i line[4];
    std::memcpy(line, source + at, kLineBytes);
    for (size_t i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(target + at) + i, line[i]);
  }
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
