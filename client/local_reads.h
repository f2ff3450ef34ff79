// Fetching chunks of one checkpoint out of the memory of a server on this host.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "client/chunk_source.h"
#include "client/connection.h"
#include "client/deadline.h"
#include "format/base/unix_socket.h"
#include "format/proto/local.pb.h"

namespace esker {

// The server's buffers, mapped for reading, and a connection over which it says where in them a chunk is.
class LocalReads final : public ChunkSource {
 public:
  // Errors: those of GreetLocally; kResourceExhausted (no room to map the buffers).
  static absl::StatusOr<std::unique_ptr<LocalReads>> Open(Connection* connection, uint64_t lease_id,
                                                          const Deadline& deadline);
  ~LocalReads() override;
  LocalReads(const LocalReads&) = delete;
  LocalReads& operator=(const LocalReads&) = delete;

  Transport transport() const override { return Transport::kSharedMemory; }
  // Sent with the next call of Next.
  absl::Status Want(uint64_t tag, const Hash128& hash) override;
  absl::StatusOr<FetchedChunk> Next(uint64_t silence_ms) override;
  absl::Status CheckNotTakenBack() const override;
  void Cancel() override { socket_.StopReceiving(); }

 private:
  LocalReads(const std::string& server, UnixSocket socket, ByteView buffers, uint64_t lease_id)
      : server_(server), socket_(std::move(socket)), buffers_(buffers), lease_id_(lease_id) {}

  absl::Status SendRequest();
  absl::StatusOr<FetchedChunk> ToFetched(const v1::LocalChunk& answer);
  absl::Status Nonsense(std::string_view what) const;

  const std::string server_;
  const UnixSocket socket_;
  const ByteView buffers_;  // mapped
  const uint64_t lease_id_;
  v1::LocalReads request_;  // to be sent
  absl::flat_hash_set<uint64_t> wanted_;
};

}  // namespace esker
