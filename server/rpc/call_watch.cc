#include "server/rpc/call_watch.h"

#include <pthread.h>

#include <chrono>

#include "format/base/status.h"

namespace esker {

CallWatch::CallWatch(const Clock* clock, uint64_t resolution_ms)
    : clock_(clock), resolution_ms_(resolution_ms), thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), "rpc-watch");
}

CallWatch::~CallWatch() {
  {
    MutexLock lock(&mu_);
    ESKER_CHECK(calls_.empty());
    stopping_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
}

void CallWatch::Add(WatchedCall* call) {
  MutexLock lock(&mu_);
  calls_.insert(call);
}

void CallWatch::Remove(WatchedCall* call) {
  MutexLock lock(&mu_);
  calls_.erase(call);
}

void CallWatch::Drain() {
  {
    MutexLock lock(&mu_);
    draining_ = true;
    tick_now_ = true;
  }
  wake_.NotifyAll();
}

void CallWatch::Run() {
  MutexLock lock(&mu_);
  while (!stopping_) {
    const auto next = std::chrono::steady_clock::now() + std::chrono::milliseconds(resolution_ms_);
    while (!stopping_ && !tick_now_ && wake_.WaitUntil(&mu_, next)) {
    }
    tick_now_ = false;
    const int64_t now_ms = clock_->MonotonicMillis();
    for (WatchedCall* call : calls_) call->OnTick(now_ms, draining_);
  }
}

}  // namespace esker
