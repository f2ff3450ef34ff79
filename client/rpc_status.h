// gRPC's statuses as absl's, with the server and the call named; and which of them trying again may cure.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace esker {

// The one place where a grpc::Status becomes an absl::Status. `call` is the RPC's name. A server that was not
// reached is kUnavailable, with what to check.
absl::Status FromGrpc(const grpc::Status& status, std::string_view server, std::string_view call);

enum class Retry {
  kNever,     // a refusal: the same request gets the same answer
  kFewTimes,  // the server's trouble, which may be over the next time (a write error sealed off a segment)
  kAlways,    // the connection or the server is gone: until time runs out
};

Retry RetryOf(const absl::Status& status);

}  // namespace esker
