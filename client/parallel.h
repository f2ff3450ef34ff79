// Running one job on several threads and waiting for it.
#pragma once

#include <cstddef>
#include <functional>

#include "format/base/thread_pool.h"

namespace esker {

// Options' `threads`: 0 means as many as the machine has cores, at most 8.
int ThreadsOrDefault(int threads);

// Calls body(0) … body(count - 1), each once, on the caller's thread and the pool's. Returns when all have
// returned.
void ParallelFor(ThreadPool* pool, size_t count, const std::function<void(size_t)>& body);

// Calls body(0) on the caller's thread and body(1) … body(threads - 1) on new ones, and joins them. A body
// must be able to do the whole work alone: if the system refuses a thread, it is left out.
void RunOnThreads(int threads, const std::function<void(int)>& body);

}  // namespace esker
