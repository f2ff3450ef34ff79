// Fetching chunks of one checkpoint: Store.GetChunks, from the client's side.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/chunk_stream.h"
#include "format/chunk_record.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/slice.h"

namespace esker {

// A chunk as it came, unchecked but for its framing: `body` has info.stored_bytes bytes.
struct FetchedChunk {
  uint64_t tag = 0;
  absl::Status error;  // the server's: it has no such chunk, or only a damaged one; then the rest is empty
  ChunkInfo info;
  std::vector<grpc::Slice> body;
};

// Used by one thread, but for Cancel.
class GetStream {
 public:
  GetStream(std::shared_ptr<grpc::Channel> channel, const std::string& server, uint64_t lease_id);

  absl::Status Want(uint64_t tag, const Hash128& hash);
  // The answer to the oldest Want. kDeadlineExceeded if the server sends nothing for `silence_ms`. kDataLoss
  // if it sends what is no answer: lengths that contradict each other, another tag. Any error ends the use of
  // this stream.
  absl::StatusOr<FetchedChunk> Next(uint64_t silence_ms);
  // As ChunkStream::Cancel.
  void Cancel() { stream_.Cancel(); }

 private:
  absl::Status ReadBody(FetchedChunk* chunk, uint64_t silence_ms);
  absl::Status Nonsense(std::string_view what) const;

  const std::string server_;
  const std::string hello_;
  bool greeted_ = false;
  std::deque<uint64_t> wanted_;
  ChunkStream stream_;
};

}  // namespace esker
