// A raw stream of byte messages (format/frame.h) to a server, with calls that block and a deadline.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/deadline.h"
#include "format/base/bytes.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"

namespace esker {

// A message that refers to `bytes` without copying them. gRPC keeps a copy of `keep` until it has dropped the
// message for good, which may be after the stream's end: only `keep` says when the bytes may change.
grpc::ByteBuffer ReferTo(ByteView bytes, const std::shared_ptr<const void>& keep);
// A message with a copy of `text`.
grpc::ByteBuffer CopyOf(std::string_view text);
// All bytes of a message, which are `limit` at most; else kInvalidArgument.
absl::StatusOr<std::string> ToString(const grpc::ByteBuffer& message, uint64_t limit);

// One RPC. All calls but Cancel are made by one thread, which is also the one that does gRPC's work for this
// stream: it has its own completion queue, and nothing happens between the calls. When the stream breaks,
// every call returns the RPC's status.
class ChunkStream {
 public:
  // Starts the RPC "/esker.v1.Store/`call`". The whole stream must be over by `deadline`. `server` is for
  // messages.
  ChunkStream(std::shared_ptr<grpc::Channel> channel, std::string server, std::string call,
              const Deadline& deadline);
  // Cancels the stream unless Finish was called. When it returns, the RPC is over.
  ~ChunkStream();
  ChunkStream(const ChunkStream&) = delete;
  ChunkStream& operator=(const ChunkStream&) = delete;

  // Sends a message once the one before has gone; so it blocks while the server does not take what was sent.
  // Messages that arrive meanwhile are kept for Read.
  absl::Status Write(const grpc::ByteBuffer& message);

  // The next message, in order. kDeadlineExceeded if none comes until then (the stream goes on); kUnavailable
  // if the server ended the stream.
  absl::StatusOr<grpc::ByteBuffer> Read(const Deadline& deadline);
  // Whether Read would return at once.
  bool HasMessage();

  // Whether the stream is over, as far as the calls before have seen.
  bool broken() const { return broken_; }

  // Says that nothing more is sent, and waits for the RPC's status. Messages that still arrive are dropped.
  absl::Status Finish();

  // Breaks the stream off; whoever is in a call gets kCancelled soon. Any thread, any number of times.
  void Cancel() { context_.TryCancel(); }

 private:
  enum Event : intptr_t { kStarted = 1, kWritten, kRead, kFinished };

  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }
  // Waits for one event and handles it; false if none comes until then.
  bool Await(const Deadline& deadline);
  // The same without a limit of its own: the RPC's deadline and Cancel end every operation.
  void Await();
  void Handle(Event event, bool ok);
  void StartRead();
  // Waits for the RPC's status, once it is over or about to be.
  void Settle();
  // What a broken stream's calls return.
  absl::Status Broken();

  const std::shared_ptr<grpc::Channel> channel_;
  const std::string server_;
  const std::string call_;

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> rpc_;
  int pending_ = 0;         // operations that gRPC has not given back
  bool writing_ = false;    // kStarted or kWritten is pending
  bool reading_ = false;    // kRead is pending
  bool broken_ = false;     // an operation failed: the RPC is over, or about to be
  bool finishing_ = false;  // its status was asked for
  bool finished_ = false;   // and is in status_
  grpc::ByteBuffer incoming_;
  std::deque<grpc::ByteBuffer> received_;
  uint64_t received_bytes_ = 0;
  grpc::Status status_;
};

}  // namespace esker
