// The address that a server listens on.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace esker {

struct ListenAddress {
  std::string host;  // without the brackets of an IPv6 address
  int port = 0;
};

// "host:port" or "[v6]:port". kInvalidArgument says what is wrong.
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);

// How clients reach it: a wildcard host is replaced by this machine's name.
std::string AddressForClients(const ListenAddress& address);

// Why `address` can't be listened on, as kUnavailable. Tries it once more to find out.
absl::Status ExplainListenFailure(const ListenAddress& address);

}  // namespace esker
