#include "server/server.h"

#include "format/base/status.h"
#include "format/base/text.h"
#include "server/catalog/rocks_catalog.h"

namespace esker {

absl::StatusOr<std::unique_ptr<Server>> Server::Open(const ServerConfig& config) {
  std::unique_ptr<Server> server(new Server());
  // The store first: it holds the lock on the directory, in which the catalog lies.
  ESKER_ASSIGN_OR_RETURN(server->store_, Store::Open(config.store));
  ESKER_ASSIGN_OR_RETURN(server->catalog_, OpenRocksCatalog(StrCat(config.store.directory, "/catalog")));
  ESKER_ASSIGN_OR_RETURN(server->coordinator_, Coordinator::Start(config.coordinator, server->catalog_.get(),
                                                                  server->store_.get()));
  ESKER_ASSIGN_OR_RETURN(server->rpc_,
                         RpcServer::Start(config.rpc, server->coordinator_.get(), server->store_.get()));
  return server;
}

Server::~Server() = default;

}  // namespace esker
