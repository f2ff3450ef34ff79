// What every connection of the local server works with.
#pragma once

#include <atomic>
#include <chrono>
#include <string>

#include "format/base/mutex.h"
#include "format/base/thread_pool.h"
#include "format/proto/checkpoint.pb.h"
#include "server/coordinator/coordinator.h"
#include "server/store/chunk_reader.h"
#include "server/store/store.h"

namespace esker {

struct LocalBackend {
  LocalBackend(Coordinator* given_coordinator, Store* given_store, ChunkReader* given_reader,
               std::chrono::milliseconds given_stalled_chunk_timeout);

  Coordinator* const coordinator;
  Store* const store;
  ChunkReader* const reader;
  const std::chrono::milliseconds stalled_chunk_timeout;  // for a client to release a chunk
  v1::ServerInfo server;  // of this server, for manifests; constant once connections are taken
  // Hash, encode and hand over to the store. Their tasks may wait for buffers and for the disk's queue, but
  // not for each other.
  ThreadPool workers;
  // Saves end soon, without having done all.
  std::atomic<bool> stopping = false;
};

}  // namespace esker
