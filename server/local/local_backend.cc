#include "server/local/local_backend.h"

#include <algorithm>
#include <thread>

namespace esker {
namespace {

// The training that shares the host with the server goes first: a rank that copies its snapshot while this
// server hashes what was copied already should feel little of it. With the threads of the one on all cores
// and those of the other, these get a tenth.
constexpr int kNiceness = 10;

int WorkerThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 16); }

}  // namespace

LocalBackend::LocalBackend(Coordinator* given_coordinator, Store* given_store, ChunkReader* given_reader,
                           std::chrono::milliseconds given_stalled_chunk_timeout)
    : coordinator(given_coordinator),
      store(given_store),
      reader(given_reader),
      stalled_chunk_timeout(given_stalled_chunk_timeout),
      workers(WorkerThreads(), "esker-local", kNiceness) {}

}  // namespace esker
