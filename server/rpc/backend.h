// What every call of a server works with.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "format/base/thread_pool.h"
#include "server/coordinator/coordinator.h"
#include "server/rpc/call_watch.h"
#include "server/rpc/rpc_options.h"
#include "server/rpc/unary_calls.h"
#include "server/store/chunk_reader.h"
#include "server/store/store.h"

namespace esker {

// Two pools:
//   calls    handlers that may block on the index, the catalog or an fdatasync
//   streams  short steps of streams; may wait for the disk to take a write
struct RpcBackend {
  RpcBackend(const RpcOptions& given_options, Coordinator* given_coordinator, Store* given_store,
             ChunkReader* given_reader);

  const RpcOptions options;
  Coordinator* const coordinator;
  Store* const store;
  ChunkReader* const reader;
  const int64_t started_ms;
  std::atomic<int> verify_calls{0};

  CallWatch watch;
  ThreadPool calls;
  ThreadPool streams;
  UnaryCalls unary;

  // How often who reads renews the lease: once a second, or more often if it is short.
  int64_t RenewIntervalMillis() const;

  // "host:port" for clients. gRPC may take the first call before it has said which port it got: then this
  // waits.
  std::string AddressForClients();
  void SetAddressForClients(std::string address);

 private:
  Mutex address_mu_;
  CondVar address_set_;
  std::string address_ ABSL_GUARDED_BY(address_mu_);
};

}  // namespace esker
