#include "server/store/read_leases.h"

#include <algorithm>
#include <random>

#include "format/base/text.h"

namespace esker::store {

ReadLeases::ReadLeases(const Clock* clock, uint64_t ttl_ms, bool unknown_readers)
    : clock_(clock),
      ttl_ms_(static_cast<int64_t>(ttl_ms)),
      unknown_until_ms_(unknown_readers ? clock->MonotonicMillis() + ttl_ms_ : 0) {}

uint64_t ReadLeases::Open(const SaveRef& save) {
  // Random, so that a reader from before a restart can't renew or close somebody else's lease.
  std::random_device random;
  MutexLock lock(&mu_);
  DropExpired();
  uint64_t id = 0;
  while (id == 0 || leases_.contains(id)) id = (uint64_t{random()} << 32) | random();
  leases_[id] = {save, clock_->MonotonicMillis() + ttl_ms_};
  return id;
}

absl::Status ReadLeases::Renew(uint64_t lease_id) {
  MutexLock lock(&mu_);
  DropExpired();
  const auto lease = leases_.find(lease_id);
  if (lease == leases_.end()) {
    return absl::NotFoundError(StrCat("read lease ", absl::Hex(lease_id),
                                      ": it ran out (it must be renewed every ", ttl_ms_,
                                      " ms), or the server restarted: open the checkpoint again"));
  }
  lease->second.expires_ms = clock_->MonotonicMillis() + ttl_ms_;
  return absl::OkStatus();
}

void ReadLeases::Close(uint64_t lease_id) {
  MutexLock lock(&mu_);
  leases_.erase(lease_id);
}

bool ReadLeases::HasReaders(const SaveRef& save) const {
  MutexLock lock(&mu_);
  DropExpired();
  return std::any_of(leases_.begin(), leases_.end(),
                     [&](const auto& lease) { return lease.second.save == save; });
}

bool ReadLeases::MayHaveUnknownReaders() const { return clock_->MonotonicMillis() < unknown_until_ms_; }

uint64_t ReadLeases::count() const {
  MutexLock lock(&mu_);
  DropExpired();
  return leases_.size();
}

bool ReadLeases::HasSeveral() const {
  MutexLock lock(&mu_);
  return leases_.size() > 1;
}

void ReadLeases::DropExpired() const {
  const int64_t now_ms = clock_->MonotonicMillis();
  std::erase_if(leases_, [&](const auto& lease) { return lease.second.expires_ms <= now_ms; });
}

}  // namespace esker::store
