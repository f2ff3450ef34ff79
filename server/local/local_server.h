// The server's door for clients on its own host: a Unix socket over which memory is shared.
#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/base/unix_socket.h"
#include "format/proto/checkpoint.pb.h"
#include "server/coordinator/coordinator.h"
#include "server/local/local_backend.h"
#include "server/local/local_connection.h"
#include "server/store/chunk_reader.h"
#include "server/store/store.h"

namespace esker {

// Each connection has a thread. At most kMaxConnections at a time: further clients use gRPC.
class LocalServer {
 public:
  static constexpr size_t kMaxConnections = 512;

  // Listens at `path`, taking the place of a socket that a dead server left there. Nobody is served before
  // Serve. All must outlive the server. `stalled_chunk_timeout`: as in RpcOptions.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Listen(const std::string& path,
                                                             Coordinator* coordinator, Store* store,
                                                             ChunkReader* reader,
                                                             std::chrono::milliseconds stalled_chunk_timeout);
  // Shutdown(0), unless it was called before.
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

  const std::string& path() const { return path_; }
  // 16 random bytes that a client must know (GetLocalSocket): the path alone may lead to another server.
  const std::string& token() const { return token_; }

  // Takes connections from now on. `server`: how clients reach this server, for manifests.
  void Serve(const v1::ServerInfo& server);

  // Takes no new requests, gives saves under way so long to end, and breaks off what is left then. Blocks;
  // afterwards nothing refers to the store or the coordinator.
  void Shutdown(std::chrono::milliseconds drain);

 private:
  struct Client {
    std::unique_ptr<LocalConnection> connection;
    std::thread thread;
    bool ended = false;
  };

  LocalServer(std::string path, UnixSocket socket, Coordinator* coordinator, Store* store,
              ChunkReader* reader, std::chrono::milliseconds stalled_chunk_timeout);
  void AcceptAll();
  void Add(UnixSocket socket);
  // Joins the threads that have ended.
  void Reap();

  const std::string path_;
  const std::string token_;
  const UnixSocket socket_;
  LocalBackend backend_;
  std::thread acceptor_;

  Mutex mu_;
  CondVar ended_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::list<Client> clients_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
