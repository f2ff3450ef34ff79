#include "client/encode_buffers.h"

#include <memory>

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(EncodeBuffers, AreUsedAgain) {
  EncodeBuffers buffers;
  auto first = buffers.Take();
  first->resize(1000);
  const std::vector<std::byte>* const memory = first.get();
  std::shared_ptr<const void> keep = first;
  first.reset();
  EXPECT_NE(buffers.Take().get(), memory) << "it is still referred to";
  keep.reset();
  const auto one = buffers.Take();
  const auto two = buffers.Take();
  EXPECT_TRUE(one.get() == memory || two.get() == memory);
}

TEST(EncodeBuffers, MayOutliveTheirPool) {
  std::shared_ptr<std::vector<std::byte>> buffer;
  {
    EncodeBuffers buffers;
    buffer = buffers.Take();
  }
  buffer->resize(10);
}

}  // namespace
}  // namespace esker::testing
