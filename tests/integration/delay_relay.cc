#include "tests/integration/delay_relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace esker::testing {
namespace {

constexpr size_t kPieceBytes = 256 << 10;

sockaddr_in LoopbackAddress(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

UniqueFd NewTcpSocket() { return UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

void SendAtOnce(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

}  // namespace

// One thread receives, another sends what has waited long enough.
class DelayRelay::Direction {
 public:
  Direction(int from, int to, std::chrono::microseconds delay)
      : from_(from), to_(to), delay_(delay), receiver_([this] { Receive(); }), sender_([this] { Send(); }) {}
  // Its sockets must have been shut down.
  ~Direction() {
    receiver_.join();
    sender_.join();
  }

 private:
  struct Piece {
    std::chrono::steady_clock::time_point due;
    std::vector<char> bytes;  // none: the end
  };

  void Receive() {
    while (true) {
      std::vector<char> bytes(kPieceBytes);
      ssize_t got;
      do {
        got = ::recv(from_, bytes.data(), bytes.size(), 0);
      } while (got < 0 && errno == EINTR);
      bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
      MutexLock lock(&mu_);
      while (buffered_bytes_ >= kBufferedBytes && !broken_) changed_.Wait(&mu_);
      buffered_bytes_ += bytes.size();
      pieces_.push_back({std::chrono::steady_clock::now() + delay_, std::move(bytes)});
      changed_.NotifyAll();
      if (got <= 0 || broken_) return;
    }
  }

  void Send() {
    while (true) {
      Piece piece;
      {
        MutexLock lock(&mu_);
        while (pieces_.empty()) changed_.Wait(&mu_);
        piece = std::move(pieces_.front());
        pieces_.pop_front();
      }
      std::this_thread::sleep_until(piece.due);
      if (piece.bytes.empty()) {
        ::shutdown(to_, SHUT_WR);
        return;
      }
      const bool sent = SendAll(piece.bytes);
      MutexLock lock(&mu_);
      buffered_bytes_ -= piece.bytes.size();
      broken_ = broken_ || !sent;
      changed_.NotifyAll();
      if (!sent) {
        ::shutdown(from_, SHUT_RD);
        return;
      }
    }
  }

  bool SendAll(const std::vector<char>& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t sent = ::send(to_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return false;
      at += static_cast<size_t>(sent);
    }
    return true;
  }

  const int from_;
  const int to_;
  const std::chrono::microseconds delay_;

  Mutex mu_;
  CondVar changed_;
  std::deque<Piece> pieces_ ABSL_GUARDED_BY(mu_);
  uint64_t buffered_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;

  std::thread receiver_;
  std::thread sender_;
};

absl::StatusOr<std::unique_ptr<DelayRelay>> DelayRelay::Start(int port, std::chrono::microseconds delay) {
  UniqueFd listener = NewTcpSocket();
  sockaddr_in address = LoopbackAddress(0);
  socklen_t length = sizeof(address);
  if (!listener || ::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      ::listen(listener.get(), 64) != 0 ||
      ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return absl::ErrnoToStatus(errno, "listening for the relay");
  }
  std::string name = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  return std::unique_ptr<DelayRelay>(new DelayRelay(std::move(listener), std::move(name), port, delay));
}

DelayRelay::DelayRelay(UniqueFd listener, std::string address, int port, std::chrono::microseconds delay)
    : listener_(std::move(listener)),
      address_(std::move(address)),
      port_(port),
      delay_(delay),
      acceptor_([this] { AcceptAll(); }) {}

DelayRelay::~DelayRelay() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    for (const Link& link : links_) {
      ::shutdown(link.client.get(), SHUT_RDWR);
      ::shutdown(link.server.get(), SHUT_RDWR);
    }
  }
  ::shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  MutexLock lock(&mu_);
  for (Link& link : links_) {
    link.there.reset();
    link.back.reset();
  }
}

void DelayRelay::AcceptAll() {
  while (true) {
    UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client && (errno == EINTR || errno == ECONNABORTED)) continue;
    if (!client) return;
    UniqueFd server = NewTcpSocket();
    const sockaddr_in address = LoopbackAddress(port_);
    if (::connect(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) continue;
    SendAtOnce(client.get());
    SendAtOnce(server.get());
    MutexLock lock(&mu_);
    if (stopping_) return;
    Link& link = links_.emplace_back();
    link.client = std::move(client);
    link.server = std::move(server);
    link.there = std::make_unique<Direction>(link.client.get(), link.server.get(), delay_);
    link.back = std::make_unique<Direction>(link.server.get(), link.client.get(), delay_);
  }
}

}  // namespace esker::testing
