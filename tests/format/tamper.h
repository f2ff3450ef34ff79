// Ways to damage encoded bytes, for the tests that must see every damage refused.
#pragma once

#include <functional>
#include <string>

#include "format/base/bytes.h"
#include "format/hash.h"

namespace esker::testing {

// Calls `check` with each string that differs from `intact` in one bit of bytes [first, last).
inline void ForEachBitFlip(const std::string& intact, size_t first, size_t last,
                           const std::function<void(const std::string& damaged, size_t bit)>& check) {
  std::string damaged = intact;
  for (size_t bit = first * 8; bit < last * 8; ++bit) {
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    check(damaged, bit);
    damaged[bit / 8] = intact[bit / 8];
  }
}

// `bytes` with `value` at `at`.
template <typename T>
std::string WithField(std::string bytes, size_t at, T value) {
  std::byte little[sizeof(T)];
  StoreLittle<T>(little, value);
  for (size_t i = 0; i < sizeof(T); ++i) bytes.at(at + i) = static_cast<char>(little[i]);
  return bytes;
}

// The same, with the CRC-32C at `crc_at` (over all bytes before it) made right again: a writer's mistake, not
// damage.
template <typename T>
std::string WithFieldAndCrc(std::string bytes, size_t at, T value, size_t crc_at) {
  bytes = WithField(std::move(bytes), at, value);
  return WithField(bytes, crc_at, Crc32c(AsBytes(bytes).first(crc_at)));
}

}  // namespace esker::testing
