#include "server/rpc/backend.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace esker {
namespace {

// Many, because Seals that wait together share one fdatasync.
constexpr int kCallThreads = 32;

int StreamThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 4, 16); }

// Late by no more than an eighth of the shortest limit.
uint64_t WatchResolutionMillis(const RpcOptions& options) {
  const uint64_t shortest = std::min(options.idle_timeout_ms, options.stalled_chunk_timeout_ms);
  return std::clamp<uint64_t>(shortest / 8, 1, 250);
}

}  // namespace

RpcBackend::RpcBackend(const RpcOptions& given_options, Coordinator* given_coordinator, Store* given_store,
                       ChunkReader* given_reader)
    : options(given_options),
      coordinator(given_coordinator),
      store(given_store),
      reader(given_reader),
      started_ms(given_options.clock->MonotonicMillis()),
      watch(given_options.clock, WatchResolutionMillis(given_options)),
      calls(kCallThreads, "rpc-call"),
      streams(StreamThreads(), "rpc-stream"),
      unary(&options, &calls) {}

int64_t RpcBackend::RenewIntervalMillis() const {
  return static_cast<int64_t>(std::min<uint64_t>(1000, options.read_lease_ttl_ms / 4));
}

std::string RpcBackend::AddressForClients() {
  MutexLock lock(&address_mu_);
  while (address_.empty()) address_set_.Wait(&address_mu_);
  return address_;
}

void RpcBackend::SetAddressForClients(std::string address) {
  MutexLock lock(&address_mu_);
  address_ = std::move(address);
  address_set_.NotifyAll();
}

}  // namespace esker
