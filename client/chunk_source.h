// Where a restore gets chunks from: a stream of gRPC (GetStream), or the server's own memory (LocalReads).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "esker/reader.h"
#include "format/base/bytes.h"
#include "format/chunk_record.h"
#include "format/hash.h"

namespace esker {

// A chunk as it came, unchecked but for its framing. Must not outlive its source.
struct FetchedChunk {
  uint64_t tag = 0;
  absl::Status error;  // the server's: it has no such chunk, or only a damaged one; then the rest is empty
  ChunkInfo info;
  // info.stored_bytes bytes, in pieces, until `owner` ends. They may change at any moment: what counts is
  // what is found in a copy.
  std::vector<ByteView> stored;
  std::shared_ptr<const void> owner;
};

// Used by one thread, but for Cancel.
class ChunkSource {
 public:
  virtual ~ChunkSource() = default;

  // kSharedMemory or kGrpc.
  virtual Transport transport() const = 0;

  // Asks for a chunk; no two without an answer have one tag.
  virtual absl::Status Want(uint64_t tag, const Hash128& hash) = 0;
  // The answer to one of the wants. kDeadlineExceeded if the server sends nothing for `silence_ms`. kDataLoss
  // if it sends what is no answer. Any error ends the use of this source.
  virtual absl::StatusOr<FetchedChunk> Next(uint64_t silence_ms) = 0;
  // OK if the chunks that Next gave are still what it gave: the server can take memory back from who keeps it
  // for too long, or when it ends. To be asked when a chunk was found damaged.
  virtual absl::Status CheckNotTakenBack() const { return absl::OkStatus(); }

  // Fails what is under way, and all that comes, with an error. Any thread.
  virtual void Cancel() = 0;
};

}  // namespace esker
