#include "server/local/local_server.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <utility>

#include "format/base/status.h"
#include "format/proto/local.pb.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

constexpr std::chrono::milliseconds kAcceptAgain{100};

std::string NewToken() {
  std::random_device device;
  std::string token;
  while (token.size() < 16) token.push_back(static_cast<char>(device()));
  return token;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Listen(
    const std::string& path, Coordinator* coordinator, Store* store, ChunkReader* reader,
    std::chrono::milliseconds stalled_chunk_timeout) {
  ESKER_ASSIGN_OR_RETURN(UnixSocket socket, UnixSocket::Listen(path));
  return std::unique_ptr<LocalServer>(
      new LocalServer(path, std::move(socket), coordinator, store, reader, stalled_chunk_timeout));
}

LocalServer::LocalServer(std::string path, UnixSocket socket, Coordinator* coordinator, Store* store,
                         ChunkReader* reader, std::chrono::milliseconds stalled_chunk_timeout)
    : path_(std::move(path)),
      token_(NewToken()),
      socket_(std::move(socket)),
      backend_(coordinator, store, reader, stalled_chunk_timeout) {}

LocalServer::~LocalServer() { Shutdown(std::chrono::milliseconds(0)); }

void LocalServer::Serve(const v1::ServerInfo& server) {
  backend_.server = server;
  acceptor_ = std::thread([this] { AcceptAll(); });
}

void LocalServer::AcceptAll() {
  while (true) {
    absl::StatusOr<UnixSocket> client = socket_.Accept();
    if (absl::IsCancelled(client.status())) return;
    Reap();
    if (client.ok()) {
      Add(*std::move(client));
    } else {
      spdlog::warn("a client on this host can't be taken: {}", client.status().ToString());
      std::this_thread::sleep_for(kAcceptAgain);
    }
  }
}

void LocalServer::Add(UnixSocket socket) {
  MutexLock lock(&mu_);
  if (closed_) return;
  if (clients_.size() == kMaxConnections) {
    spdlog::warn(
        "{} clients on this host share memory with the server, the most that may: the next one uses gRPC",
        kMaxConnections);
    return;
  }
  Client& client = clients_.emplace_back();
  client.connection = std::make_unique<LocalConnection>(&backend_, std::move(socket), token_);
  client.thread = std::thread([this, &client] {
    client.connection->Run();
    MutexLock ended(&mu_);
    client.connection = nullptr;
    client.ended = true;
    ended_.NotifyAll();
  });
}

void LocalServer::Reap() {
  std::list<Client> gone;
  {
    MutexLock lock(&mu_);
    for (auto client = clients_.begin(); client != clients_.end();) {
      const auto next = std::next(client);
      if (client->ended) gone.splice(gone.end(), clients_, client);
      client = next;
    }
  }
  for (Client& client : gone) client.thread.join();
}

void LocalServer::Shutdown(std::chrono::milliseconds drain) {
  {
    MutexLock lock(&mu_);
    if (closed_) return;
    closed_ = true;
    for (const Client& client : clients_) {
      if (!client.ended) client.connection->Stop();
    }
  }
  socket_.StopReceiving();
  if (acceptor_.joinable()) acceptor_.join();
  ::unlink(path_.c_str());
  const auto deadline = std::chrono::steady_clock::now() + drain;
  MutexLock lock(&mu_);
  const auto all_ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return std::all_of(clients_.begin(), clients_.end(), [](const Client& client) { return client.ended; });
  };
  while (!all_ended() && ended_.WaitUntil(&mu_, deadline)) {
  }
  backend_.stopping = true;
  while (!all_ended()) ended_.Wait(&mu_);
  for (Client& client : clients_) client.thread.join();
  clients_.clear();
}

}  // namespace esker
