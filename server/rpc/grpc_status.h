// absl::Status as it crosses the wire. The only place where the server turns one into gRPC's.
#pragma once

#include <grpcpp/support/status.h>

#include <cstddef>

#include "absl/status/status.h"

namespace esker {

// gRPC sends the message in a header whose percent-encoding may triple it, and refuses headers above 8 KiB.
inline constexpr size_t kMaxStatusMessageBytes = 2048;

// The codes of both are the same numbers. A message that is too long loses its middle.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace esker
