#include "server/server.h"

#include <algorithm>
#include <filesystem>

#include "format/base/status.h"
#include "format/base/text.h"
#include "server/catalog/rocks_catalog.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

constexpr char kLocalSocketName[] = "local.sock";

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Open(const ServerConfig& config) {
  std::unique_ptr<Server> server(new Server());
  // The store first: it holds the lock on the directory, in which the catalog lies.
  ESKER_ASSIGN_OR_RETURN(server->store_, Store::Open(config.store));
  server->reader_ = std::make_unique<ChunkReader>(server->store_.get());
  ESKER_ASSIGN_OR_RETURN(server->catalog_, OpenRocksCatalog(StrCat(config.store.directory, "/catalog")));
  ESKER_ASSIGN_OR_RETURN(server->coordinator_, Coordinator::Start(config.coordinator, server->catalog_.get(),
                                                                  server->store_.get()));
  RpcOptions rpc = config.rpc;
  rpc.local_socket = server->ListenLocally(config);
  ESKER_ASSIGN_OR_RETURN(server->rpc_, RpcServer::Start(rpc, server->coordinator_.get(), server->store_.get(),
                                                        server->reader_.get()));
  if (server->local_ != nullptr) {
    v1::ServerInfo info;
    info.set_id(server->store_->id());
    info.set_address(server->address());
    server->local_->Serve(info);
  }
  return server;
}

// Without it, all clients use gRPC.
LocalSocket Server::ListenLocally(const ServerConfig& config) {
  std::error_code error;
  const std::string path =
      StrCat(std::filesystem::absolute(config.store.directory, error).string(), "/", kLocalSocketName);
  absl::StatusOr<std::unique_ptr<LocalServer>> local =
      LocalServer::Listen(path, coordinator_.get(), store_.get(), reader_.get(),
                          std::chrono::milliseconds(config.rpc.stalled_chunk_timeout_ms));
  if (!local.ok()) {
    spdlog::warn("clients on this host can't share memory with the server: {}", local.status().ToString());
    return {.path = "", .token = "", .reason = std::string(MessageOf(local.status()))};
  }
  local_ = *std::move(local);
  return {.path = path, .token = local_->token(), .reason = ""};
}

void Server::Shutdown(std::chrono::milliseconds drain) {
  const auto end = std::chrono::steady_clock::now() + drain;
  if (local_ != nullptr) local_->Shutdown(drain);
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
  rpc_->Shutdown(std::max(left, std::chrono::milliseconds(0)));
}

Server::~Server() = default;

}  // namespace esker
