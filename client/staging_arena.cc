#include "client/staging_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <vector>

#include "client/memory_limit.h"
#include "format/base/huge_pages.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// How much is touched at a time. Meanwhile the process can neither map memory nor give it back: so, little.
constexpr uint64_t kTouchBytes = 8 << 20;
// Whoever restores or trains goes first.
constexpr int kTouchNiceness = 10;
// Some pages may be in use by the server when they are to be put into huge ones.
constexpr int kCollapseTries = 5;
constexpr int kPausesBetweenTries = 50;
constexpr std::chrono::milliseconds kPause{20};

absl::Status NoMemory(uint64_t bytes) {
  return absl::ResourceExhaustedError(StrCat("staging memory: mmap of ", bytes,
                                             " bytes: ", std::strerror(errno),
                                             "; the snapshot needs room for one copy of this rank's state"));
}

// A file in memory of that size, which nobody can change from then on: else the process that it is handed to
// would be killed when it reads what was cut off. None if the system does not give it.
UniqueFd MakeSealedMemory(uint64_t bytes) {
  UniqueFd memory(::memfd_create("esker-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0 ||
      ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return UniqueFd();
  }
  return memory;
}

}  // namespace

absl::StatusOr<std::shared_ptr<StagingBlock>> StagingBlock::Map(uint64_t bytes, bool shareable) {
  const uint64_t size = RoundUp(std::max(bytes, uint64_t{1}), kHugePageBytes);
  // One huge page more, to begin at a huge page's boundary; the rest is given back.
  const uint64_t reserved = size + kHugePageBytes;
  void* at = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return NoMemory(size);
  auto* begin = static_cast<std::byte*>(at);
  auto* data = reinterpret_cast<std::byte*>(RoundUp(reinterpret_cast<uint64_t>(begin), kHugePageBytes));
  const uint64_t before = static_cast<uint64_t>(data - begin);
  if (before > 0) ::munmap(begin, before);
  if (before < kHugePageBytes) ::munmap(data + size, kHugePageBytes - before);
  UniqueFd memory = shareable ? MakeSealedMemory(size) : UniqueFd();
  if (memory &&
      ::mmap(data, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.get(), 0) == MAP_FAILED) {
    const absl::Status status = NoMemory(size);
    ::munmap(data, size);
    return status;
  }
  // Only advice: without huge pages all works, slower.
  ::madvise(data, size, MADV_HUGEPAGE);
  return std::shared_ptr<StagingBlock>(new StagingBlock(std::move(memory), data, size));
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
  ESKER_ASSIGN_OR_RETURN(block_, StagingBlock::Map(bytes, share_blocks_));
  try {
    toucher_ = std::thread([this, block = block_] { Touch(block.get()); });
  } catch (const std::system_error&) {
    // No thread to be had: the first save touches the memory.
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<StagingBlock>> StagingArena::Prefault(uint64_t bytes) {
  ESKER_RETURN_IF_ERROR(Replace(bytes));
  return block_;
}

void StagingArena::Touch(StagingBlock* block) {
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kTouchNiceness);
  // Each piece that this is true for is done with.
  const auto for_all = [&](std::vector<uint64_t>* begins, bool (*settle)(MutableBytes)) {
    std::erase_if(*begins, [&](uint64_t begin) {
      return !stop_toucher_ && settle({block->data() + begin, std::min(kTouchBytes, block->size() - begin)});
    });
  };
  std::vector<uint64_t> begins;
  for (uint64_t at = 0; at < block->size(); at += kTouchBytes) begins.push_back(at);
  std::vector<uint64_t> small = begins;
  for_all(&begins, &Populate);
  // An old kernel refuses it: then the first save touches the memory.
  if (!begins.empty() || block->descriptor() < 0) return;
  for (int i = 0; i < kCollapseTries && !small.empty() && !stop_toucher_; ++i) {
    for_all(&small, &Collapse);
    for (int pause = 0; pause < kPausesBetweenTries && !small.empty() && !stop_toucher_; ++pause) {
      std::this_thread::sleep_for(kPause);
    }
  }
}

absl::StatusOr<std::shared_ptr<StagingBlock>> StagingArena::Acquire(uint64_t bytes) {
  const bool reusable = block_ != nullptr && block_->size() >= bytes && !block_->abandoned() &&
                        block_->AwaitNoViews(views_end_ms_);
  if (!reusable) ESKER_RETURN_IF_ERROR(Replace(bytes));
  return block_;
}

}  // namespace esker
