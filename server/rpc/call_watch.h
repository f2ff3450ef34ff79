// One thread that looks at every long call of the server from time to time, so that none of them needs a
// timer of its own.
#pragma once

#include <cstdint>
#include <thread>
#include <unordered_set>

#include "format/base/clock.h"
#include "format/base/mutex.h"

namespace esker {

// A call that outlives its request: a stream, or a wait.
class WatchedCall {
 public:
  virtual ~WatchedCall() = default;
  // Called every few milliseconds to a quarter of a second. `draining`: the server is about to stop; end as
  // soon as nothing is under way. Must be short; must not call the watch.
  virtual void OnTick(int64_t now_ms, bool draining) = 0;
};

// Thread-safe.
class CallWatch {
 public:
  // `resolution_ms`: how late a tick may be.
  CallWatch(const Clock* clock, uint64_t resolution_ms);
  // Every call must have been removed.
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  void Add(WatchedCall* call);
  // Waits for a tick of the call that is under way: afterwards the call may be destroyed.
  void Remove(WatchedCall* call);

  // From now on calls are told to end; at once, and then at each tick.
  void Drain();

  int64_t NowMillis() const { return clock_->MonotonicMillis(); }

 private:
  void Run();

  const Clock* const clock_;
  const uint64_t resolution_ms_;

  // Taken before the locks of calls.
  Mutex mu_;
  CondVar wake_;
  std::unordered_set<WatchedCall*> calls_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool tick_now_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace esker
