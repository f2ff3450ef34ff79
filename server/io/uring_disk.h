// The fast engine: io_uring, with one ring and one thread per disk.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/io/posix_disk.h"

namespace esker {

// Starts the ring and tries it. An error where it can't be used: kPermissionDenied where a container's
// seccomp profile or kernel.io_uring_disabled forbids it, kUnimplemented where the kernel lacks it or an
// operation of it.
absl::StatusOr<std::unique_ptr<IoEngine>> StartUringEngine();

}  // namespace esker
