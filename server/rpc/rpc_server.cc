#include "server/rpc/rpc_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <mutex>

#include "format/base/status.h"
#include "format/frame.h"
#include "server/rpc/coordinator_service.h"
#include "server/rpc/listen_address.h"
#include "server/rpc/store_service.h"

namespace esker {
namespace {

// Bounds what gRPC itself holds: messages on their way in, and the state of connections and calls.
constexpr size_t kGrpcMemoryBytes = size_t{256} << 20;
constexpr int kMaxStreamsPerConnection = 4096;
// Clients send a ping every 10 s to notice a dead server; gRPC's default takes that for abuse.
constexpr int kLeastPingIntervalMs = 5'000;
constexpr int kKeepaliveIntervalMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// gRPC gives a message's memory back a moment after the connection is closed.
constexpr std::chrono::milliseconds kBuffersBackTimeout{10'000};

void SetLimits(const RpcOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder->SetMaxSendMessageSize(-1);
  // A small compressed message may be huge when unpacked.
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder->SetResourceQuota(grpc::ResourceQuota("eskerd").Resize(kGrpcMemoryBytes));

  // Two servers on one port would each get half of the calls.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                              static_cast<int>(options.idle_timeout_ms));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kLeastPingIntervalMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveIntervalMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcOptions& options,
                                                            Coordinator* coordinator, Store* store,
                                                            ChunkReader* reader) {
  std::unique_ptr<RpcServer> server(new RpcServer(options, coordinator, store, reader));
  ESKER_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

RpcServer::RpcServer(const RpcOptions& options, Coordinator* coordinator, Store* store, ChunkReader* reader)
    : backend_(std::make_unique<RpcBackend>(options, coordinator, store, reader)),
      coordinator_service_(std::make_unique<CoordinatorService>(backend_.get())),
      store_service_(std::make_unique<StoreService>(backend_.get())) {}

RpcServer::~RpcServer() { Shutdown(std::chrono::milliseconds(0)); }

absl::Status RpcServer::Listen(const RpcOptions& options) {
  ESKER_ASSIGN_OR_RETURN(ListenAddress address, ParseListenAddress(options.listen));
  static std::once_flag once;
  std::call_once(once, [] { grpc::EnableDefaultHealthCheckService(true); });

  grpc::ServerBuilder builder;
  SetLimits(options, &builder);
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(coordinator_service_.get());
  builder.RegisterService(store_service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    if (server_ != nullptr) server_->Shutdown();
    server_ = nullptr;
    return ExplainListenFailure(address);
  }
  // Clients may ask for the health of one service, too.
  for (const char* service : {v1::Coordinator::service_full_name(), v1::Store::service_full_name()}) {
    server_->GetHealthCheckService()->SetServingStatus(service, true);
  }
  address.port = port_;
  backend_->SetAddressForClients(AddressForClients(address));
  return absl::OkStatus();
}

void RpcServer::Shutdown(std::chrono::milliseconds drain) {
  if (server_ == nullptr) return;
  server_->GetHealthCheckService()->SetServingStatus(false);
  backend_->watch.Drain();
  server_->Shutdown(std::chrono::system_clock::now() + drain);
  server_ = nullptr;
  ESKER_CHECK(backend_->reader->WaitUntilIdle(kBuffersBackTimeout));
}

}  // namespace esker
