// The client's side of a raw stream, blocking, frame by frame.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "format/base/bytes.h"
#include "format/chunk_record.h"

namespace esker::testing {

// A frame as the server sent it, taken apart.
struct Answer {
  uint64_t tag = 0;
  absl::Status status;  // of a kAck or kError
  bool is_chunk = false;
  ChunkInfo info;      // of a chunk
  std::string stored;  // and its bytes
};

// Reading and writing may happen on two threads. A stream that hangs fails after a minute.
class RawClient {
 public:
  RawClient(const std::shared_ptr<grpc::Channel>& channel, const char* method);
  // Cancels what was not finished.
  ~RawClient();

  // False if the stream has ended.
  bool Write(const std::string& message);
  // A chunk's head and its body in messages of `message_bytes`.
  bool WriteChunk(uint64_t tag, const ChunkInfo& info, const std::string& stored,
                  size_t message_bytes = 1 << 20);
  void WritesDone() { stream_->WritesDone(); }

  // Nothing at the end of the stream.
  std::optional<std::string> ReadMessage();
  // The next kAck, kError, or chunk with all of its body. Nothing at the end.
  std::optional<Answer> ReadAnswer();

  // Reads the stream to its end and returns how it ended.
  absl::Status Finish();
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  const grpc::internal::RpcMethod method_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream_;
  bool finished_ = false;
};

inline constexpr const char* kPutChunks = "/esker.v1.Store/PutChunks";
inline constexpr const char* kGetChunks = "/esker.v1.Store/GetChunks";

absl::Status FromGrpc(const grpc::Status& status);

}  // namespace esker::testing
