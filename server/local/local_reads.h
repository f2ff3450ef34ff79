// Chunks for one client on this host: read into the server's buffers, which the client has mapped, and held
// there until the client is done with them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "format/base/mutex.h"
#include "format/base/unix_socket.h"
#include "format/hash.h"
#include "format/proto/local.pb.h"
#include "server/local/local_backend.h"
#include "server/store/chunk_reader.h"

namespace esker {

// Take, Check and ReleaseDue are for the connection's thread. At most kMaxLocalReads chunks are wanted or
// held.
class LocalReads {
 public:
  static constexpr size_t kMaxLocalReads = 64;

  // Answers go to `socket`. Both must outlive this.
  LocalReads(LocalBackend* backend, const UnixSocket* socket) : backend_(backend), socket_(socket) {}
  // Waits until no read is under way, and gives back what is held: the client must have been told before
  // (UnixSocket::StopSending).
  ~LocalReads();
  LocalReads(const LocalReads&) = delete;
  LocalReads& operator=(const LocalReads&) = delete;

  // Gives back what is released, and starts to read what is wanted. An error ends the connection, here and
  // below: kInvalidArgument, or kNotFound for a lease that ran out.
  absl::Status Take(const v1::LocalReads& request);
  // Until when the client must release its oldest chunk; not before Check has to be called, at any rate.
  // Empty: it wants nothing.
  std::optional<UnixSocket::TimePoint> ReleaseDue() const;
  // kDeadlineExceeded if that time is over; or what went wrong meanwhile, for which the socket's receiving
  // was stopped.
  absl::Status Check() const;

 private:
  struct Wanted {
    std::shared_ptr<HeldChunk> chunk;  // nullptr while it is read
    UnixSocket::TimePoint given;
  };

  absl::Status Release(const v1::LocalReads& request);
  absl::Status Want(uint64_t lease_id, std::string_view frame);
  absl::Status StillWanted(uint64_t lease_id);
  void OnRead(uint64_t tag, HeldChunkOr chunk);
  absl::Status AnswerLocked(uint64_t tag, const HeldChunkOr& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The first one counts.
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  LocalBackend* const backend_;
  const UnixSocket* const socket_;

  mutable Mutex mu_;
  CondVar idle_;
  absl::flat_hash_map<uint64_t, Wanted> wanted_ ABSL_GUARDED_BY(mu_);  // by tag
  size_t reading_ ABSL_GUARDED_BY(mu_) = 0;                            // of these
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
