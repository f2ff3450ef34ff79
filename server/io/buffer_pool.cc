#include "server/io/buffer_pool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "format/base/huge_pages.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "server/io/disk.h"

namespace esker {
namespace {

void* MapOrAbort(void* at, uint64_t bytes, int protection, int flags, int fd) {
  void* mapped = ::mmap(at, bytes, protection, flags, fd, 0);
  if (mapped != MAP_FAILED) return mapped;
  std::fprintf(stderr,
               "can't map %llu bytes for the buffer pool: %s: lower its size or raise the memory limit\n",
               static_cast<unsigned long long>(bytes), ::strerror(errno));
  std::abort();
}

// Memory with a descriptor, or nothing where the system is too old to make any that others can't write to.
UniqueFd ShareableMemory(uint64_t bytes) {
  UniqueFd fd(::memfd_create("esker-buffers", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return UniqueFd();
  return fd;
}

// After this, only what is mapped already can be written to.
bool Seal(const UniqueFd& memory) {
#ifdef F_SEAL_FUTURE_WRITE
  return ::fcntl(memory.get(), F_ADD_SEALS,
                 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0;
#else
  return false;
#endif
}

// Reserves more addresses than are wanted and gives the ends back, so that huge pages fit from the first byte
// on. Without `memory`, which is sealed: private.
MutableBytes MapTouched(uint64_t bytes, UniqueFd* memory) {
  const uint64_t reserved_bytes = bytes + kHugePageBytes;
  void* reserved = MapOrAbort(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  const auto address = reinterpret_cast<uintptr_t>(reserved);
  const uint64_t before = RoundUp(address, kHugePageBytes) - address;
  const uint64_t after = reserved_bytes - before - bytes;
  auto* start = static_cast<std::byte*>(reserved) + before;
  if (before > 0) ::munmap(reserved, before);
  if (after > 0) ::munmap(start + bytes, after);

  constexpr int kAccess = PROT_READ | PROT_WRITE;
  if (*memory) MapOrAbort(start, bytes, kAccess, MAP_SHARED | MAP_FIXED, memory->get());
  if (!*memory || !Seal(*memory)) {
    MapOrAbort(start, bytes, kAccess, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    *memory = UniqueFd();
  }
  const MutableBytes pool(start, bytes);
  if (!Populate(pool)) {
    for (uint64_t at = 0; at < bytes; at += kBlockBytes) start[at] = std::byte{0};
  }
  // Now, before a device has any of it.
  if (*memory) Collapse(pool.first(bytes / kHugePageBytes * kHugePageBytes));
  return pool;
}

}  // namespace

// Free memory is a map of offset to length in which no two runs touch; the first run that is long enough is
// taken. That keeps the far end of the pool whole for large pieces.
struct BufferPool::Impl {
  struct Waiter {
    uint64_t bytes;
    std::function<void(Buffer)> ready;
  };
  struct Grant {
    std::function<void(Buffer)> ready;
    Buffer buffer;
  };

  UniqueFd descriptor;
  MutableBytes memory;
  uint64_t max_buffer_bytes = 0;

  mutable Mutex mu;
  std::map<uint64_t, uint64_t> free_runs ABSL_GUARDED_BY(mu);
  uint64_t in_use_bytes ABSL_GUARDED_BY(mu) = 0;
  std::deque<Waiter> waiters ABSL_GUARDED_BY(mu);

  // Empty where no run is long enough.
  MutableBytes Take(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void GiveBack(MutableBytes piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // The grants that this thread is calling back just now, else null. A callback that gives its piece back
  // would otherwise call the next one from within, as deep as there are waiters.
  static thread_local std::deque<Grant>* dispatching;
  static void Dispatch(std::deque<Grant> grants);
};

thread_local std::deque<BufferPool::Impl::Grant>* BufferPool::Impl::dispatching = nullptr;

MutableBytes BufferPool::Impl::Take(uint64_t bytes) {
  const auto run = std::find_if(free_runs.begin(), free_runs.end(),
                                [&](const auto& entry) { return entry.second >= bytes; });
  if (run == free_runs.end()) return {};
  const auto [offset, length] = *run;
  free_runs.erase(run);
  if (length > bytes) free_runs.emplace(offset + bytes, length - bytes);
  in_use_bytes += bytes;
  return memory.subspan(offset, bytes);
}

void BufferPool::Impl::GiveBack(MutableBytes piece) {
  const uint64_t piece_bytes = piece.size();
  uint64_t offset = static_cast<uint64_t>(piece.data() - memory.data());
  uint64_t length = piece_bytes;
  auto next = free_runs.lower_bound(offset);
  ESKER_CHECK(next == free_runs.end() || offset + length <= next->first);
  if (next != free_runs.end() && next->first == offset + length) {
    length += next->second;
    next = free_runs.erase(next);
  }
  if (next != free_runs.begin()) {
    const auto previous = std::prev(next);
    ESKER_CHECK(previous->first + previous->second <= offset);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      length += previous->second;
      free_runs.erase(previous);
    }
  }
  free_runs.emplace(offset, length);
  in_use_bytes -= piece_bytes;
}

void BufferPool::Impl::Dispatch(std::deque<Grant> grants) {
  if (dispatching != nullptr) {
    for (Grant& grant : grants) dispatching->push_back(std::move(grant));
    return;
  }
  dispatching = &grants;
  while (!grants.empty()) {
    Grant grant = std::move(grants.front());
    grants.pop_front();
    grant.ready(std::move(grant.buffer));
  }
  dispatching = nullptr;
}

BufferPool::BufferPool(uint64_t capacity_bytes, uint64_t max_buffer_bytes) : impl_(std::make_unique<Impl>()) {
  ESKER_CHECK(max_buffer_bytes > 0 && capacity_bytes >= max_buffer_bytes);
  const uint64_t bytes = RoundUp(capacity_bytes, kBlockBytes);
  impl_->descriptor = ShareableMemory(bytes);
  impl_->memory = MapTouched(bytes, &impl_->descriptor);
  impl_->max_buffer_bytes = max_buffer_bytes;
  MutexLock lock(&impl_->mu);
  impl_->free_runs.emplace(0, impl_->memory.size());
}

BufferPool::~BufferPool() {
  {
    MutexLock lock(&impl_->mu);
    ESKER_CHECK(impl_->in_use_bytes == 0);
    ESKER_CHECK(impl_->waiters.empty());
  }
  ::munmap(impl_->memory.data(), impl_->memory.size());
}

Buffer BufferPool::Acquire(uint64_t bytes) {
  Mutex mu;
  CondVar arrived;
  Buffer piece;
  AcquireAsync(bytes, [&](Buffer given) {
    // Notifies under the lock: the waiter's frame may be gone right after.
    MutexLock lock(&mu);
    piece = std::move(given);
    arrived.NotifyOne();
  });
  MutexLock lock(&mu);
  while (!piece) arrived.Wait(&mu);
  return piece;
}

void BufferPool::AcquireAsync(uint64_t bytes, std::function<void(Buffer)> ready) {
  ESKER_CHECK(bytes <= impl_->max_buffer_bytes);
  const uint64_t wanted = std::max(RoundUp(bytes, kBlockBytes), kBlockBytes);
  MutableBytes piece;
  {
    MutexLock lock(&impl_->mu);
    if (impl_->waiters.empty()) piece = impl_->Take(wanted);
    if (piece.empty()) {
      impl_->waiters.push_back({wanted, std::move(ready)});
      return;
    }
  }
  ready(Buffer(this, piece));
}

void BufferPool::Release(MutableBytes bytes) {
  std::deque<Impl::Grant> grants;
  {
    MutexLock lock(&impl_->mu);
    impl_->GiveBack(bytes);
    while (!impl_->waiters.empty()) {
      const MutableBytes piece = impl_->Take(impl_->waiters.front().bytes);
      if (piece.empty()) break;
      grants.push_back({std::move(impl_->waiters.front().ready), Buffer(this, piece)});
      impl_->waiters.pop_front();
    }
  }
  if (!grants.empty()) Impl::Dispatch(std::move(grants));
}

MutableBytes BufferPool::memory() const { return impl_->memory; }

const UniqueFd& BufferPool::descriptor() const { return impl_->descriptor; }

uint64_t BufferPool::in_use_bytes() const {
  MutexLock lock(&impl_->mu);
  return impl_->in_use_bytes;
}

Buffer Buffer::Borrow(MutableBytes bytes, std::shared_ptr<const void> owner) {
  Buffer buffer(nullptr, bytes);
  buffer.owner_ = std::move(owner);
  return buffer;
}

Buffer::~Buffer() {
  if (pool_ != nullptr) pool_->Release(bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      owner_(std::move(other.owner_)),
      bytes_(std::exchange(other.bytes_, {})) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Buffer old(std::move(*this));
    pool_ = std::exchange(other.pool_, nullptr);
    owner_ = std::move(other.owner_);
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

}  // namespace esker
