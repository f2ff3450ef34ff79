// Memory of a client on this host, in which its saves lie.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/base/unique_fd.h"

namespace esker {

// Mapped until destroyed; the client's death does not end it. Nothing that the client does to the memory can
// make an access fail: it is sealed against shrinking, and lies on no file system that could refuse a page.
// What is in it may change at any moment.
class Arena {
 public:
  // Maps the first `bytes` of what a client handed over. kInvalidArgument: not from memfd_create, not sealed
  // against shrinking, or smaller than that. kResourceExhausted: no room to map it.
  static absl::StatusOr<std::shared_ptr<const Arena>> Map(const UniqueFd& memory, uint64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Begins at a block's boundary.
  MutableBytes memory() const { return memory_; }

 private:
  explicit Arena(MutableBytes memory) : memory_(memory) {}

  const MutableBytes memory_;
};

}  // namespace esker
