// A lease on a checkpoint: while it lives, garbage collection takes nothing of the checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "format/base/mutex.h"

namespace esker {

// Thread-safe. Renewed by a thread of its own, three times in its time to live; taken anew after a restart of
// the server.
class ReadLease {
 public:
  // kNotFound if the server has no such checkpoint (any more).
  static absl::StatusOr<std::unique_ptr<ReadLease>> Open(std::shared_ptr<Connection> connection,
                                                         const std::string& run, uint64_t step,
                                                         uint64_t save_id, uint64_t timeout_ms);
  // Gives the lease back, if that takes no longer than a second.
  ~ReadLease();
  ReadLease(const ReadLease&) = delete;
  ReadLease& operator=(const ReadLease&) = delete;

  // Changes when the lease is taken anew.
  uint64_t id() const;
  // Asks the server whether it knows the lease, and takes a new one if not. kNotFound if the checkpoint is
  // gone.
  absl::Status Refresh(const Deadline& deadline);

 private:
  ReadLease(std::shared_ptr<Connection> connection, const std::string& run, uint64_t step, uint64_t save_id);

  absl::Status Take(const Deadline& deadline);
  void RenewUntilStopped();

  const std::shared_ptr<Connection> connection_;
  const std::string run_;
  const uint64_t step_;
  const uint64_t save_id_;

  // Held during Refresh: who comes second finds the lease that the first one took. Taken before mu_.
  Mutex refresh_mu_;

  mutable Mutex mu_;
  CondVar stop_changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t id_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t ttl_ms_ ABSL_GUARDED_BY(mu_) = 0;

  std::thread renewer_;
};

}  // namespace esker
