// Tensors to encode: what training makes, and what nobody expects.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "format/base/bytes.h"
#include "format/dtype.h"

namespace esker {

inline std::vector<std::byte> NoiseBytes(size_t size, std::mt19937_64& random) {
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Gaussian numbers as F32 bits, of which BF16 is the upper half.
inline std::vector<std::byte> GaussianBytes(DType dtype, size_t size, std::mt19937_64& random) {
  std::normal_distribution<float> weight(0, 0.02f);
  std::vector<std::byte> bytes(size);
  const size_t width = dtype == DType::kBF16 ? 2 : 4;
  for (size_t at = 0; at + width <= size; at += width) {
    const float value = weight(random);
    std::memcpy(bytes.data() + at, reinterpret_cast<const std::byte*>(&value) + (4 - width), width);
  }
  return bytes;
}

// Bits that are hard for whoever takes them for numbers: each element is all ones (NaN), a NaN with a random
// payload, infinity, a denormal, the smallest or the largest number, of either sign, a zero of either sign.
inline std::vector<std::byte> OddBytes(DType dtype, size_t size, std::mt19937_64& random) {
  const size_t width = std::min<size_t>(ElementBytes(dtype), 8);
  const uint64_t all_ones = ~uint64_t{0} >> (64 - 8 * width);
  const uint64_t sign = uint64_t{1} << (8 * width - 1);
  std::vector<std::byte> bytes(size);
  for (size_t at = 0; at + width <= size; at += width) {
    const uint64_t choices[] = {all_ones,
                                all_ones ^ random() % 256,
                                all_ones << 7 * width & all_ones & ~sign,
                                1 + random() % 7,
                                1,
                                sign - 1,
                                0};
    const uint64_t bits = choices[random() % std::size(choices)] ^ (random() % 2 == 0 ? sign : 0);
    std::memcpy(bytes.data() + at, &bits, width);
  }
  return bytes;
}

// Mostly zeros, here and there a random byte.
inline std::vector<std::byte> SparseBytes(size_t size, std::mt19937_64& random) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; i += 1 + random() % 200) bytes[i] = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace esker
