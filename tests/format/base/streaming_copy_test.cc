#include "format/base/streaming_copy.h"

#include <gtest/gtest.h>

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

TEST(StreamingCopy, OfNothingTouchesNothing) { StreamingCopy(nullptr, nullptr, 0); }

}  // namespace
}  // namespace esker
