// One block of memory for O_DIRECT outside the buffer pool: for headers, which must not wait for payload
// memory.
#pragma once

#include <new>

#include "format/base/bytes.h"
#include "server/io/disk.h"

namespace esker::store {

// Content is undefined at first.
class AlignedBlock {
 public:
  AlignedBlock()
      : bytes_(static_cast<std::byte*>(::operator new (kBlockBytes, std::align_val_t{kBlockBytes}))) {}
  ~AlignedBlock() { ::operator delete (bytes_, std::align_val_t{kBlockBytes}); }
  AlignedBlock(const AlignedBlock&) = delete;
  AlignedBlock& operator=(const AlignedBlock&) = delete;

  MutableBytes bytes() const { return {bytes_, kBlockBytes}; }

 private:
  std::byte* const bytes_;
};

}  // namespace esker::store
