#include "exchange.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>

namespace esker::example {
namespace {

// Not std::atomic::wait: that one may use a futex that is private to the process.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, int timeout_ms) {
  const timespec timeout{timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>* word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

}  // namespace

Exchange* Exchange::Create(uint64_t hidden, uint32_t ranks) {
  const uint64_t activations = (kInputs + 2 * hidden + kVocabulary) * kBatch;
  const uint64_t partials = kRowGroups * (kInputs + 2 * hidden) * kBatch;
  const uint64_t bytes = sizeof(Exchange) + (activations + partials) * sizeof(float);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fprintf(stderr, "train: mapping %llu bytes of shared memory: %s\n",
            static_cast<unsigned long long>(bytes), strerror(errno));
    exit(1);
  }
  return new (memory) Exchange(hidden, ranks, bytes);
}

void Exchange::Destroy() { ::munmap(this, mapped_bytes_); }

float* Exchange::partials(int layer) {
  const uint64_t activations = (kInputs + 2 * hidden_ + kVocabulary) * kBatch;
  const uint64_t rows_before = layer == 0 ? 0 : kInputs + static_cast<uint64_t>(layer - 1) * hidden_;
  return Array(activations + kRowGroups * rows_before * kBatch);
}

void Exchange::Barrier() {
  ExitIfPeerDied();
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == ranks_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    FutexWakeAll(&round_);
    return;
  }
  while (round_.load(std::memory_order_acquire) == round) {
    ExitIfPeerDied();
    // ReportDeath wakes the sleepers; the timeout is for a death reported between the check and the sleep.
    FutexWait(&round_, round, 100);
  }
}

void Exchange::ExitIfPeerDied() const {
  const int32_t dead = dead_rank_.load(std::memory_order_acquire);
  if (dead < 0) return;
  char line[96];
  const int length =
      snprintf(line, sizeof(line), "train: pid %d: rank %d died, so this rank ends too\n", getpid(), dead);
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line, static_cast<size_t>(length));
  // Not exit(): a destructor would wait for a save that can't commit any more.
  ::_exit(kPeerDiedExitCode);
}

void Exchange::ReportDeath(uint32_t rank) {
  dead_rank_.store(static_cast<int32_t>(rank), std::memory_order_release);
  FutexWakeAll(&round_);
}

}  // namespace esker::example
