#include "server/rpc/listen_address.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

TEST(ListenAddress, ParsesNamesAndAddresses) {
  const struct {
    const char* text;
    const char* host;
    int port;
  } cases[] = {{"127.0.0.1:7070", "127.0.0.1", 7070},
               {"localhost:0", "localhost", 0},
               {"[::1]:65535", "::1", 65535},
               {"0.0.0.0:1", "0.0.0.0", 1}};
  for (const auto& [text, host, port] : cases) {
    ASSERT_OK_AND_ASSIGN(const ListenAddress address, ParseListenAddress(text));
    EXPECT_EQ(address.host, host);
    EXPECT_EQ(address.port, port);
  }
}

TEST(ListenAddress, RefusesTheRestAndShowsAnExample) {
  for (const char* text : {"", "7070", "localhost", ":7070", "localhost:", "localhost:http", "localhost:-1",
                           "localhost:65536", "localhost:99999999999", "::1:7070", "localhost:7070x"}) {
    EXPECT_STATUS(ParseListenAddress(text), absl::StatusCode::kInvalidArgument, "such as 127.0.0.1:7070");
  }
}

TEST(ListenAddress, ClientsGetANameInsteadOfAWildcard) {
  EXPECT_EQ(AddressForClients({.host = "10.1.2.3", .port = 7}), "10.1.2.3:7");
  EXPECT_EQ(AddressForClients({.host = "fe80::1", .port = 7}), "[fe80::1]:7");
  EXPECT_NE(AddressForClients({.host = "0.0.0.0", .port = 7}), "0.0.0.0:7");
  EXPECT_NE(AddressForClients({.host = "::", .port = 7}), "[::]:7");
}

}  // namespace
}  // namespace esker
