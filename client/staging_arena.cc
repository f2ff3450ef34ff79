#include "client/staging_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "client/memory_limit.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr uint64_t kHugePageBytes = 2 << 20;
// How much is touched between two looks at whether to stop.
constexpr uint64_t kTouchBytes = 64 << 20;

}  // namespace

absl::StatusOr<std::shared_ptr<StagingBlock>> StagingBlock::Map(uint64_t bytes) {
  const uint64_t size = RoundUp(std::max(bytes, uint64_t{1}), kHugePageBytes);
  // One huge page more, to begin at a huge page's boundary; the rest is given back.
  const uint64_t mapped = size + kHugePageBytes;
  void* at = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        StrCat("staging memory: mmap of ", size, " bytes: ", std::strerror(errno),
               "; the snapshot needs room for one copy of this rank's state"));
  }
  auto* begin = static_cast<std::byte*>(at);
  auto* data = reinterpret_cast<std::byte*>(RoundUp(reinterpret_cast<uint64_t>(begin), kHugePageBytes));
  const uint64_t before = static_cast<uint64_t>(data - begin);
  if (before > 0) ::munmap(begin, before);
  if (before < kHugePageBytes) ::munmap(data + size, kHugePageBytes - before);
  // Only advice: without huge pages all works, slower.
  ::madvise(data, size, MADV_HUGEPAGE);
  return std::shared_ptr<StagingBlock>(new StagingBlock(data, size));
}

StagingBlock::~StagingBlock() { ::munmap(data_, size_); }

std::shared_ptr<const void> StagingBlock::View() {
  {
    MutexLock lock(&mu_);
    ++views_;
  }
  return std::shared_ptr<const void>(data_, [self = shared_from_this()](const void*) { self->EndView(); });
}

void StagingBlock::EndView() {
  MutexLock lock(&mu_);
  if (--views_ == 0) no_views_.NotifyAll();
}

bool StagingBlock::AwaitNoViews(uint64_t timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  MutexLock lock(&mu_);
  while (views_ > 0) {
    if (!no_views_.WaitUntil(&mu_, deadline) && views_ > 0) return false;
  }
  return true;
}

StagingArena::~StagingArena() { StopToucher(); }

void StagingArena::StopToucher() {
  if (!toucher_.joinable()) return;
  stop_toucher_ = true;
  toucher_.join();
  stop_toucher_ = false;
}

void StagingArena::Forget() {
  StopToucher();
  block_.reset();
}

absl::Status StagingArena::Replace(uint64_t bytes) {
  Forget();  // before the new one is made: both may not fit
  const uint64_t available = AvailableMemoryBytes();
  if (bytes > available) {
    return absl::ResourceExhaustedError(StrCat("staging memory: the snapshot of this rank's state needs ",
                                               bytes, " bytes, but only ", available,
                                               " are available on this machine or in this control group"));
  }
  ESKER_ASSIGN_OR_RETURN(block_, StagingBlock::Map(bytes));
  return absl::OkStatus();
}

absl::Status StagingArena::Prefault(uint64_t bytes) {
  ESKER_RETURN_IF_ERROR(Replace(bytes));
  const auto touch = [this, block = block_] {
    for (uint64_t at = 0; at < block->size() && !stop_toucher_; at += kTouchBytes) {
      // Keeps what a save has written meanwhile. An old kernel refuses it: then the first save touches the
      // memory.
      if (::madvise(block->data() + at, std::min(kTouchBytes, block->size() - at), MADV_POPULATE_WRITE) != 0)
        return;
    }
  };
  try {
    toucher_ = std::thread(touch);
  } catch (const std::system_error&) {
    return absl::OkStatus();  // no thread to be had: the first save touches the memory
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<StagingBlock>> StagingArena::Acquire(uint64_t bytes) {
  const bool reusable = block_ != nullptr && block_->size() >= bytes && block_->AwaitNoViews(views_end_ms_);
  if (!reusable) ESKER_RETURN_IF_ERROR(Replace(bytes));
  return block_;
}

}  // namespace esker
