// Waiting for many operations of a Disk, and bytes to compare, for the tests of server/io.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "format/base/bytes.h"
#include "format/base/mutex.h"
#include "server/io/disk.h"

namespace esker::testing {

// Hands out callbacks and waits until all of them were called.
class Completions {
 public:
  // Waits too, so that a test that returns early leaves no operation with a callback into a dead frame.
  ~Completions() { (void)Wait(); }

  DiskFile::Callback Expect() {
    MutexLock lock(&mu_);
    ++expected_;
    return [this](absl::Status status) {
      MutexLock callback_lock(&mu_);
      first_error_.Update(status);
      ++called_;
      changed_.NotifyAll();
    };
  }

  // The first error, if there was one.
  absl::Status Wait() {
    MutexLock lock(&mu_);
    while (called_ < expected_) changed_.Wait(&mu_);
    return first_error_;
  }

  int called() const {
    MutexLock lock(&mu_);
    return called_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  int expected_ ABSL_GUARDED_BY(mu_) = 0;
  int called_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status first_error_ ABSL_GUARDED_BY(mu_);
};

template <typename Random>
void FillRandom(MutableBytes bytes, Random* random) {
  for (std::byte& byte : bytes) byte = static_cast<std::byte>((*random)());
}

inline bool Equal(ByteView a, ByteView b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace esker::testing
