// One client of the local server: an arena, and one save after the other out of it; or reads of chunks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "format/base/unix_socket.h"
#include "format/proto/local.pb.h"
#include "server/local/arena.h"
#include "server/local/arena_save.h"
#include "server/local/local_backend.h"
#include "server/local/local_reads.h"

namespace esker {

// Used by one thread, but for Stop. The client may be gone at any moment: what it has begun goes on.
class LocalConnection {
 public:
  // `token`: what the client must know.
  LocalConnection(LocalBackend* backend, UnixSocket socket, std::string token)
      : backend_(backend),
        socket_(std::move(socket)),
        token_(std::move(token)),
        history_(backend->workers.threads()) {}

  // Serves the client until it is gone and nothing of it is under way. Blocks.
  void Run();
  // Takes no further request. Any thread.
  void Stop() { socket_.StopReceiving(); }

 private:
  absl::Status Serve();
  absl::Status Greet();
  absl::Status ServeSaves();
  absl::Status ServeReads();
  absl::StatusOr<v1::LocalRequest> NextRequest(std::optional<UnixSocket::TimePoint> until,
                                               UniqueFd* descriptor);
  absl::StatusOr<v1::ArenaSave> ReadSave(const v1::LocalSave& where) const;
  void Save(const v1::LocalSave& where);
  absl::StatusOr<uint64_t> NextReady(UnixSocket::TimePoint until);
  // Whether the client got it.
  bool Answer(const v1::LocalAnswer& answer, int descriptor = -1);
  bool AnswerFailure(const absl::Status& status);

  LocalBackend* const backend_;
  const UnixSocket socket_;
  const std::string token_;
  std::shared_ptr<const Arena> arena_;  // of a client that saves
  ArenaHistory history_;
  std::unique_ptr<LocalReads> reads_;  // of a client that restores
};

}  // namespace esker
