// What the two raw streams share: one message is read and handled at a time, messages to be sent wait in
// line, a client that hangs is thrown out, and the stream ends when nothing of it is under way.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "format/base/mutex.h"
#include "server/rpc/backend.h"
#include "server/rpc/call_watch.h"

namespace esker {

// Destroys itself when gRPC is done with it. Reading is strictly in turns: after OnMessage the next message
// is read only once the subclass calls ReadNext, which is what holds back a client that is faster than the
// disk.
class RawStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, public WatchedCall {
 public:
  // gRPC's and the watch's side.
  void OnReadDone(bool ok) final;
  void OnWriteDone(bool ok) final;
  void OnCancel() final;
  void OnDone() final;
  void OnTick(int64_t now_ms, bool draining) final;

 protected:
  // What is read next, and so how long it may take.
  enum class Awaiting {
    kHead,  // something new: idle_timeout_ms, while nothing else is under way
    kRest,  // of a chunk, for which memory is held: until `chunk_deadline_ms`
  };

  RawStream(RpcBackend* backend, grpc::CallbackServerContext* context, std::string name);
  ~RawStream() override = default;

  // Called by the constructor of the subclass when it is ready for the first message.
  void Begin();

  // Handles a message, which it may take apart. Must see to it, at once or later, that ReadNext or End is
  // called: once. Whoever does so later holds the stream with BeginWork.
  virtual void OnMessage(grpc::ByteBuffer* message) = 0;
  // No message will come any more: gives back memory that waits for one. `by_client`: the client said so, in
  // good order. Returns how the stream ends, if it has not ended already; nothing if the subclass will call
  // End itself.
  virtual std::optional<absl::Status> OnLastMessage(bool by_client) = 0;
  // Whether gRPC holds something of this stream's for longer than stalled_chunk_timeout_ms, since the client
  // does not take it. gRPC says that a message is sent when it has room for it, not when it is gone.
  virtual bool HeldTooLong(int64_t now_ms) = 0;
  // The stream has ended: takes it out of every line in which it waits for memory. What it waits for may be
  // what gRPC holds for it, and gRPC lets go of that only when the stream is done. Called with the stream's
  // lock held; must not block.
  virtual void Withdraw() = 0;

  void ReadNext(Awaiting awaiting, int64_t chunk_deadline_ms = 0);
  // Reads no more; the status goes to the client when all work has ended and all messages are sent. The first
  // one counts.
  void End(const absl::Status& status);
  bool ended() const;

  // Queues a message. `sent` is called, on any thread, when gRPC has taken it; never if the stream breaks
  // before.
  void Send(const grpc::ByteBuffer& message, std::function<void()> sent = nullptr);

  // While there is work the stream is not destroyed.
  void BeginWork();
  // The last thing that the work does: the stream may be gone afterwards.
  void EndWork();

  RpcBackend& backend() { return *backend_; }
  int64_t NowMillis() const { return backend_->watch.NowMillis(); }

 private:
  struct Outgoing {
    grpc::ByteBuffer message;
    std::function<void()> sent;
  };

  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteFrontLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends the status once everything else is over. The stream may be gone as soon as mu_ is free.
  void FinishIfOverLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TouchLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OverdueLocked(int64_t now_ms) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  RpcBackend* const backend_;
  grpc::CallbackServerContext* const context_;
  const std::string name_;

  // gRPC writes it between StartRead and OnReadDone; otherwise it belongs to whoever handles the message.
  grpc::ByteBuffer incoming_;

  // Held while operations of gRPC are started (their reactions come on other threads), so that OnDone, which
  // takes it before it destroys the stream, comes after. Taken after the watch's lock, before the buffer
  // pool's.
  mutable Mutex mu_;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  Awaiting awaiting_ ABSL_GUARDED_BY(mu_) = Awaiting::kHead;
  int64_t read_deadline_ms_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<Outgoing> queue_ ABSL_GUARDED_BY(mu_);  // the front one is being written if writing_
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  int64_t write_deadline_ms_ ABSL_GUARDED_BY(mu_) = 0;
  int work_ ABSL_GUARDED_BY(mu_) = 0;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // nothing can be sent any more
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  int64_t finish_deadline_ms_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace esker
