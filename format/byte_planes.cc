#include "format/byte_planes.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "format/base/status.h"

// The loops are plain C++, compiled once for each instruction set: the compiler makes packs and unpacks of
// them (CMakeLists.txt builds this file with -O3). All of a loop must be inlined into the function that names
// the instruction set.
#define ESKER_INLINE [[gnu::always_inline]] inline

namespace esker {
namespace {

template <typename Word>
ESKER_INLINE Word RotateLeft(Word word, int bits) {
  constexpr int kWordBits = 8 * sizeof(Word);
  return bits == 0 ? word : static_cast<Word>(word << bits | word >> (kWordBits - bits));
}

template <typename Word, int kRotation, typename... Plane>
ESKER_INLINE void SplitLoop(const std::byte* __restrict elements, size_t count, Plane* __restrict... planes) {
  for (size_t i = 0; i < count; ++i) {
    const Word word = RotateLeft(LoadLittle<Word>(elements + i * sizeof(Word)), kRotation);
    int shift = 0;
    ((planes[i] = static_cast<std::byte>(word >> shift), shift += 8), ...);
  }
}

template <typename Word, int kRotation, typename... Plane>
ESKER_INLINE void JoinLoop(std::byte* __restrict elements, size_t count, const Plane* __restrict... planes) {
  constexpr int kWordBits = 8 * sizeof(Word);
  for (size_t i = 0; i < count; ++i) {
    Word word = 0;
    int shift = 0;
    ((word = static_cast<Word>(word | static_cast<Word>(planes[i]) << shift), shift += 8), ...);
    StoreLittle(elements + i * sizeof(Word), RotateLeft(word, (kWordBits - kRotation) % kWordBits));
  }
}

template <typename Word, int kRotation, size_t... kPlane>
ESKER_INLINE void Split(const std::byte* elements, size_t count, std::byte* const* planes,
                        std::index_sequence<kPlane...>) {
  SplitLoop<Word, kRotation>(elements, count, planes[kPlane]...);
}

template <typename Word, int kRotation, size_t... kPlane>
ESKER_INLINE void Join(const std::byte* const* planes, size_t count, std::byte* elements,
                       std::index_sequence<kPlane...>) {
  JoinLoop<Word, kRotation>(elements, count, planes[kPlane]...);
}

constexpr auto kOne = std::make_index_sequence<1>();
constexpr auto kTwo = std::make_index_sequence<2>();
constexpr auto kFour = std::make_index_sequence<4>();
constexpr auto kEight = std::make_index_sequence<8>();

ESKER_INLINE void SplitAny(PlaneShape shape, const std::byte* elements, size_t count,
                           std::byte* const* planes) {
  if (shape == PlaneShape{1, 0}) return Split<uint8_t, 0>(elements, count, planes, kOne);
  if (shape == PlaneShape{2, 0}) return Split<uint16_t, 0>(elements, count, planes, kTwo);
  if (shape == PlaneShape{2, 1}) return Split<uint16_t, 1>(elements, count, planes, kTwo);
  if (shape == PlaneShape{4, 0}) return Split<uint32_t, 0>(elements, count, planes, kFour);
  if (shape == PlaneShape{4, 1}) return Split<uint32_t, 1>(elements, count, planes, kFour);
  if (shape == PlaneShape{8, 0}) return Split<uint64_t, 0>(elements, count, planes, kEight);
  if (shape == PlaneShape{8, 4}) return Split<uint64_t, 4>(elements, count, planes, kEight);
  ESKER_CHECK(IsPlaneShape(shape));
}

ESKER_INLINE void JoinAny(PlaneShape shape, const std::byte* const* planes, size_t count,
                          std::byte* elements) {
  if (shape == PlaneShape{1, 0}) return Join<uint8_t, 0>(planes, count, elements, kOne);
  if (shape == PlaneShape{2, 0}) return Join<uint16_t, 0>(planes, count, elements, kTwo);
  if (shape == PlaneShape{2, 1}) return Join<uint16_t, 1>(planes, count, elements, kTwo);
  if (shape == PlaneShape{4, 0}) return Join<uint32_t, 0>(planes, count, elements, kFour);
  if (shape == PlaneShape{4, 1}) return Join<uint32_t, 1>(planes, count, elements, kFour);
  if (shape == PlaneShape{8, 0}) return Join<uint64_t, 0>(planes, count, elements, kEight);
  if (shape == PlaneShape{8, 4}) return Join<uint64_t, 4>(planes, count, elements, kEight);
  ESKER_CHECK(IsPlaneShape(shape));
}

void SplitPortable(PlaneShape shape, const std::byte* elements, size_t count, std::byte* const* planes) {
  SplitAny(shape, elements, count, planes);
}
void JoinPortable(PlaneShape shape, const std::byte* const* planes, size_t count, std::byte* elements) {
  JoinAny(shape, planes, count, elements);
}

#ifdef __x86_64__
#define ESKER_AVX2 __attribute__((target("avx2")))
ESKER_AVX2 void SplitAvx2(PlaneShape shape, const std::byte* elements, size_t count,
                          std::byte* const* planes) {
  SplitAny(shape, elements, count, planes);
}
ESKER_AVX2 void JoinAvx2(PlaneShape shape, const std::byte* const* planes, size_t count,
                         std::byte* elements) {
  JoinAny(shape, planes, count, elements);
}

#define ESKER_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
ESKER_AVX512 void SplitAvx512(PlaneShape shape, const std::byte* elements, size_t count,
                              std::byte* const* planes) {
  SplitAny(shape, elements, count, planes);
}
ESKER_AVX512 void JoinAvx512(PlaneShape shape, const std::byte* const* planes, size_t count,
                             std::byte* elements) {
  JoinAny(shape, planes, count, elements);
}

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}
#endif

std::vector<BytePlaneKernel> FindKernels() {
  std::vector<BytePlaneKernel> kernels = {{"portable", SplitPortable, JoinPortable}};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") != 0) kernels.push_back({"avx2", SplitAvx2, JoinAvx2});
  if (HasAvx512()) kernels.push_back({"avx512", SplitAvx512, JoinAvx512});
#endif
  return kernels;
}

}  // namespace

bool IsPlaneShape(PlaneShape shape) {
  switch (shape.width) {
    case 1:
      return shape.rotation == 0;
    case 2:
    case 4:
      return shape.rotation == 0 || shape.rotation == 1;
    case 8:
      return shape.rotation == 0 || shape.rotation == 4;
    default:
      return false;
  }
}

std::span<const BytePlaneKernel> BytePlaneKernels() {
  static const std::vector<BytePlaneKernel> kernels = FindKernels();
  return kernels;
}

void SplitPlanes(PlaneShape shape, const std::byte* elements, size_t count, std::byte* const* planes) {
  BytePlaneKernels().back().split(shape, elements, count, planes);
}

void JoinPlanes(PlaneShape shape, const std::byte* const* planes, size_t count, std::byte* elements) {
  BytePlaneKernels().back().join(shape, planes, count, elements);
}

}  // namespace esker
