// Buffers for encoded chunks: used again, so that no save touches fresh memory for each chunk.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "format/base/mutex.h"

namespace esker {

// Thread-safe. There are as many buffers as are in use at a time; who asks bounds that.
class EncodeBuffers {
 public:
  // A buffer of any size and content. With its last copy, on any thread, it comes back here; or goes, if this
  // is gone.
  std::shared_ptr<std::vector<std::byte>> Take();

 private:
  struct Free {
    Mutex mu;
    std::vector<std::unique_ptr<std::vector<std::byte>>> buffers ABSL_GUARDED_BY(mu);
  };

  const std::shared_ptr<Free> free_ = std::make_shared<Free>();
};

}  // namespace esker
