// The engine that runs anywhere: pread and pwrite on a few threads. For kernels and containers that refuse
// io_uring.
#pragma once

#include <memory>

#include "server/io/posix_disk.h"

namespace esker {

std::unique_ptr<IoEngine> StartThreadPoolEngine();

}  // namespace esker
