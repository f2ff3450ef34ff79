// GetChunks: sends the chunks that a client wants, in the order asked for. Frames: format/frame.h.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "server/rpc/raw_stream.h"
#include "server/store/chunk_reader.h"

namespace esker {

// At most kMaxGetsInFlight chunks are between kWant and the last of their bytes taken by gRPC, and of these
// only as many are read ahead as make kMaxStreamReadBytes. The bytes go out of the buffer they were read
// into, without a copy.
class GetStream final : public RawStream {
 public:
  GetStream(RpcBackend* backend, grpc::CallbackServerContext* context);

 private:
  // A wanted chunk.
  struct Want {
    uint64_t tag = 0;
    Hash128 hash;
    bool reading = false;  // or read
    std::optional<HeldChunkOr> answer;
  };

  // A chunk that gRPC has taken.
  struct Sent {
    std::weak_ptr<HeldChunk> chunk;
    int64_t at_ms = 0;
  };

  void OnMessage(grpc::ByteBuffer* message) override;
  std::optional<absl::Status> OnLastMessage(bool by_client) override;
  bool HeldTooLong(int64_t now_ms) override;
  void Withdraw() override;

  void TakeHello(grpc::ByteBuffer* message);
  void TakeWant(grpc::ByteBuffer* message);
  void Fail(const absl::Status& status);

  // Keeps the lease, now and then. If it is lost the stream ends.
  absl::Status RenewNowAndThen();
  void StartReadsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(wants_mu_);
  void OnRead(uint64_t number, HeldChunkOr answer);
  void SendReadyLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(wants_mu_);
  void SendChunkLocked(uint64_t tag, std::shared_ptr<HeldChunk> chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(wants_mu_);
  void OnSent(uint64_t read_bytes, std::weak_ptr<HeldChunk> chunk);
  // Drops from sent_ what is gone.
  void ForgetGoneLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(wants_mu_);

  bool greeted_ = false;   // belongs to whoever handles the current message
  uint64_t lease_id_ = 0;  // constant after kHello

  // Taken before the stream's lock.
  Mutex wants_mu_;
  std::deque<Want> wants_
      ABSL_GUARDED_BY(wants_mu_);  // not yet queued to be sent; the first has number first_number_
  uint64_t first_number_ ABSL_GUARDED_BY(wants_mu_) = 0;
  std::deque<Sent> sent_ ABSL_GUARDED_BY(wants_mu_);    // of which gRPC may still hold bytes
  int in_flight_ ABSL_GUARDED_BY(wants_mu_) = 0;        // wants_, and what is being sent
  uint64_t read_bytes_ ABSL_GUARDED_BY(wants_mu_) = 0;  // of these, memory that is held or asked for
  bool paused_ ABSL_GUARDED_BY(wants_mu_) = false;   // reading from the client goes on when a chunk is sent
  bool closing_ ABSL_GUARDED_BY(wants_mu_) = false;  // the client wants nothing more
  int64_t renewed_ms_ ABSL_GUARDED_BY(wants_mu_) = 0;
};

}  // namespace esker
