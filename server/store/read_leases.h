// Which checkpoints are being read, so that garbage collection leaves them alone.
#pragma once

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "server/store/store.h"

namespace esker::store {

// Thread-safe, never blocks. A lease ends when it is closed, or `ttl_ms` after it was opened or last renewed.
class ReadLeases {
 public:
  // unknown_readers: this store was served before, so leases may be out of which this process does not know.
  ReadLeases(const Clock* clock, uint64_t ttl_ms, bool unknown_readers);

  uint64_t Open(const SaveRef& save);
  absl::Status Renew(uint64_t lease_id);  // kNotFound
  void Close(uint64_t lease_id);

  bool HasReaders(const SaveRef& save) const;
  bool MayHaveUnknownReaders() const;
  uint64_t count() const;
  // Whether there are several, counting expired ones that nobody has looked for yet. In constant time.
  bool HasSeveral() const;

 private:
  struct Lease {
    SaveRef save;
    int64_t expires_ms = 0;
  };
  void DropExpired() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock* const clock_;
  const int64_t ttl_ms_;
  const int64_t unknown_until_ms_;

  mutable Mutex mu_;
  mutable std::map<uint64_t, Lease> leases_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker::store
