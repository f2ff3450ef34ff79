#include "format/base/streaming_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace esker {
namespace {

TEST(StreamingCopy, CopiesExactlyAtEveryAlignment) {
  constexpr size_t kRoom = 512;
  std::vector<uint8_t> source(kRoom);
  for (size_t i = 0; i < kRoom; ++i) source[i] = static_cast<uint8_t>(i * 7 + 1);
  for (size_t to = 0; to < 65; ++to) {
    for (const size_t from : {0, 1, 8, 63}) {
      for (const size_t bytes : {0, 1, 15, 63, 64, 65, 127, 128, 200, 300}) {
        std::vector<uint8_t> target(kRoom, 0);
        std::vector<uint8_t> expected(kRoom, 0);
        for (size_t i = 0; i < bytes; ++i) expected[to + i] = source[from + i];
        StreamingCopy(target.data() + to, source.data() + from, bytes);
        ASSERT_EQ(target, expected) << bytes << " bytes from " << from << " to " << to;
      }
    }
  }
}

// Long enough that several pages are copied in turns.
TEST(StreamingCopy, CopiesLongPiecesExactly) {
  constexpr size_t kRoom = 300'000;
  std::vector<uint8_t> source(kRoom);
  for (size_t i = 0; i < kRoom; ++i) source[i] = static_cast<uint8_t>(i * 7 + i / 256 + i / 4096);
  for (const size_t to : {0, 1, 40, 64, 4095}) {
    for (const size_t from : {0, 3, 64}) {
      for (const size_t bytes : {32'767, 32'768, 32'769, 65'536, 100'003, 290'000}) {
        std::vector<uint8_t> target(kRoom, 0);
        std::vector<uint8_t> expected(kRoom, 0);
        std::copy_n(source.begin() + static_cast<ptrdiff_t>(from), bytes,
                    expected.begin() + static_cast<ptrdiff_t>(to));
        StreamingCopy(target.data() + to, source.data() + from, bytes);
        ASSERT_TRUE(target == expected) << bytes << " bytes from " << from << " to " << to;
      }
    }
  }
}

TEST(StreamingCopy, OfNothingTouchesNothing) { StreamingCopy(nullptr, nullptr, 0); }

}  // namespace
}  // namespace esker
