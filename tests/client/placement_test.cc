#include "client/placement.h"

#include <map>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(PlacePart, TheOnlyServerHasAllParts) {
  for (uint32_t rank = 0; rank < 5; ++rank)
    EXPECT_EQ(PlacePart(rank, {"a:1"}), std::vector<std::string>{"a:1"});
  EXPECT_TRUE(PlacePart(0, {}).empty());
}

TEST(PlacePart, IsBalancedExactly) {
  std::map<std::string, int> parts;
  for (uint32_t rank = 0; rank < 12; ++rank) ++parts[PlacePart(rank, {"a:1", "b:1", "c:1"}).front()];
  for (const auto& [server, count] : parts) EXPECT_EQ(count, 4) << server;
}

}  // namespace
}  // namespace esker::testing
