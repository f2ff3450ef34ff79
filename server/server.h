// A whole server in one object: store, catalog, coordinator and RPC, opened and closed in the right order.
// eskerd is little more than this; tests and the tools' embedded use run it in their own process.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/catalog/catalog.h"
#include "server/config.h"
#include "server/coordinator/coordinator.h"
#include "server/local/local_server.h"
#include "server/rpc/rpc_server.h"
#include "server/store/chunk_reader.h"
#include "server/store/store.h"

namespace esker {

// Thread-safe but for Shutdown and the destructor.
class Server {
 public:
  // Opens or makes the data directory and serves. Errors: those of Store::Open, OpenRocksCatalog and
  // RpcServer::Start.
  static absl::StatusOr<std::unique_ptr<Server>> Open(const ServerConfig& config);
  // Shutdown(0), unless it was called before.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const { return rpc_->port(); }
  // "host:port" for clients.
  std::string address() const { return rpc_->address(); }

  Store* store() { return store_.get(); }
  Coordinator* coordinator() { return coordinator_.get(); }

  // Stops serving: LocalServer::Shutdown, then RpcServer::Shutdown with what is left of the time. What was
  // acknowledged is durable already; the rest is closed by the destructor.
  void Shutdown(std::chrono::milliseconds drain);

 private:
  Server() = default;
  LocalSocket ListenLocally(const ServerConfig& config);

  // In the order of opening; closed the other way round.
  std::unique_ptr<Store> store_;
  std::unique_ptr<ChunkReader> reader_;
  std::unique_ptr<Catalog> catalog_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<LocalServer> local_;  // nullptr where its socket can't be made
  std::unique_ptr<RpcServer> rpc_;
};

}  // namespace esker
