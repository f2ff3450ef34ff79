// The gRPC server: both services, the health service, and the limits on what comes in.
#pragma once

#include <grpcpp/server.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/rpc/backend.h"

namespace esker {

class RpcServer {
 public:
  // Serves when it returns. All must outlive the server. kUnavailable if the address can't be listened on:
  // says why.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcOptions& options, Coordinator* coordinator,
                                                          Store* store, ChunkReader* reader);
  // Shutdown(0), unless it was called before.
  ~RpcServer();
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  int port() const { return port_; }
  // "host:port" for clients: the host that was listened on, or this machine's name if that was a wildcard.
  std::string address() const { return backend_->AddressForClients(); }

  // Takes no new calls, ends waits and idle streams, gives the rest so long to finish, and cancels what is
  // left then. Blocks; afterwards nothing refers to the store or the coordinator, and every buffer was given
  // back.
  void Shutdown(std::chrono::milliseconds drain);

 private:
  RpcServer(const RpcOptions& options, Coordinator* coordinator, Store* store, ChunkReader* reader);
  absl::Status Listen(const RpcOptions& options);

  const std::unique_ptr<RpcBackend> backend_;
  const std::unique_ptr<grpc::Service> coordinator_service_;
  const std::unique_ptr<grpc::Service> store_service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace esker
