// A TCP relay that delays what it forwards: a server on the same machine as if it were far away.
#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/base/unique_fd.h"

namespace esker::testing {

// Each byte arrives `delay` after it was sent, in both directions; so a round trip takes twice that longer.
// The bandwidth stays what it is, as long as kBufferedBytes a direction are enough for it.
class DelayRelay {
 public:
  static constexpr uint64_t kBufferedBytes = 64 << 20;

  // Listens on a free port of the loopback interface, and connects each client to 127.0.0.1:`port`.
  static absl::StatusOr<std::unique_ptr<DelayRelay>> Start(int port, std::chrono::microseconds delay);
  // Breaks all connections off.
  ~DelayRelay();
  DelayRelay(const DelayRelay&) = delete;
  DelayRelay& operator=(const DelayRelay&) = delete;

  // "127.0.0.1:PORT"
  const std::string& address() const { return address_; }

 private:
  class Direction;
  struct Link {
    UniqueFd client;
    UniqueFd server;
    std::unique_ptr<Direction> there;
    std::unique_ptr<Direction> back;
  };

  DelayRelay(UniqueFd listener, std::string address, int port, std::chrono::microseconds delay);
  void AcceptAll();

  const UniqueFd listener_;
  const std::string address_;
  const int port_;
  const std::chrono::microseconds delay_;

  Mutex mu_;
  std::list<Link> links_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread acceptor_;
};

}  // namespace esker::testing
