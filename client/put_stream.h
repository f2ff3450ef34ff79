// Sending chunks for one part: Store.PutChunks, from the client's side.
#pragma once

#include <memory>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "client/chunk_stream.h"
#include "client/connection.h"
#include "format/chunk_record.h"
#include "format/proto/service.pb.h"

namespace esker {

// The server's answer to one chunk.
struct PutAck {
  uint64_t tag = 0;
  absl::Status status;  // OK: the server has it, and it is durable once the part is sealed
};

// Used by one thread, but for Cancel.
class PutStream {
 public:
  // `body_bytes`: of a message, at most.
  PutStream(std::shared_ptr<grpc::Channel> channel, const std::string& server, const v1::SaveContext& save,
            uint64_t body_bytes, const Deadline& deadline);

  // Sends a chunk. `stored` is not copied; `keep` as for ReferTo. Blocks while the server does not take what
  // was sent.
  absl::Status Send(uint64_t tag, const ChunkInfo& info, ByteView stored,
                    const std::shared_ptr<const void>& keep);

  // Stored bytes of the chunks that were sent and not yet acknowledged.
  uint64_t unacknowledged_bytes() const { return unacknowledged_bytes_; }

  // The next acknowledgement. With `wait`, of which there must be one to come, it blocks for it; else nothing
  // if none is there.
  absl::StatusOr<std::optional<PutAck>> TakeAck(bool wait);

  // Whether the server has ended the stream, as far as is known. Does not block.
  bool HasEnded() { return !stream_.HasMessage() && stream_.broken(); }

  // Ends the stream in good order, when all is acknowledged.
  absl::Status Finish() { return stream_.Finish(); }
  // As ChunkStream::Cancel.
  void Cancel() { stream_.Cancel(); }

 private:
  const std::string server_;
  const uint64_t body_bytes_;
  const Deadline deadline_;
  const std::string hello_;
  bool greeted_ = false;
  absl::flat_hash_map<uint64_t, uint64_t> unacknowledged_;  // stored bytes by tag
  uint64_t unacknowledged_bytes_ = 0;
  ChunkStream stream_;
};

}  // namespace esker
