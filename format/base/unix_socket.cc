#include "format/base/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker {
namespace {

constexpr int kBacklog = 128;

// An address for a path of any length: a long one leads through a descriptor of its directory, which must
// stay open while the address is used.
struct Address {
  sockaddr_un address{};
  UniqueFd directory;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

absl::StatusOr<Address> AddressOf(const std::string& path) {
  Address result;
  result.address.sun_family = AF_UNIX;
  std::string name = path;
  if (path.size() >= sizeof(result.address.sun_path)) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("Unix socket ", path, ": the name is too long"));
    }
    result.directory = UniqueFd(::open(path.substr(0, slash).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!result.directory) return absl::ErrnoToStatus(errno, absl::StrCat("directory of ", path));
    name = absl::StrCat("/proc/self/fd/", result.directory.get(), path.substr(slash));
    if (name.size() >= sizeof(result.address.sun_path)) {
      return absl::InvalidArgumentError(absl::StrCat("Unix socket ", path, ": the name is too long"));
    }
  }
  std::memcpy(result.address.sun_path, name.c_str(), name.size());
  return result;
}

absl::StatusOr<UniqueFd> NewSocket(int flags) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!fd) return absl::ErrnoToStatus(errno, "making a Unix socket");
  return fd;
}

absl::Status Gone() { return absl::UnavailableError("the other process has closed the Unix socket"); }

// Room for one descriptor beside a packet.
union Control {
  cmsghdr header;
  std::array<char, CMSG_SPACE(sizeof(int))> bytes;
};

// Takes over the descriptors that came with a packet: the first of them, if there is one.
UniqueFd TakeDescriptor(msghdr* message) {
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    int descriptor;
    std::memcpy(&descriptor, CMSG_DATA(part), sizeof(descriptor));
    return UniqueFd(descriptor);
  }
  return UniqueFd();
}

// Waits until there is something to receive; false if time ran out.
bool AwaitInput(int fd, std::optional<UnixSocket::TimePoint> until) {
  while (true) {
    int timeout_ms = -1;
    if (until.has_value()) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(*until - std::chrono::steady_clock::now());
      timeout_ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1'000'000));
    }
    pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, timeout_ms);
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR && errno != EAGAIN) return true;  // recvmsg will say what is wrong
    if (until.has_value() && std::chrono::steady_clock::now() >= *until) return false;
  }
}

}  // namespace

absl::StatusOr<UnixSocket> UnixSocket::Connect(const std::string& path) {
  ESKER_ASSIGN_OR_RETURN(const Address address, AddressOf(path));
  ESKER_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(SOCK_NONBLOCK));
  if (::connect(fd.get(), address.get(), sizeof(sockaddr_un)) == 0) return UnixSocket(std::move(fd));
  const std::string what = absl::StrCat("Unix socket ", path);
  if (errno == ECONNREFUSED || errno == EAGAIN) {
    return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
  }
  return absl::ErrnoToStatus(errno, what);
}

absl::StatusOr<UnixSocket> UnixSocket::Listen(const std::string& path) {
  const std::string what = absl::StrCat("listening on the Unix socket ", path);
  ESKER_ASSIGN_OR_RETURN(const Address address, AddressOf(path));
  ESKER_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(0));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return absl::ErrnoToStatus(errno, what);
  // The mode of the file is that of the socket, less the umask; nobody connects before listen().
  if (::fchmod(fd.get(), 0600) != 0 || ::bind(fd.get(), address.get(), sizeof(sockaddr_un)) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    return absl::ErrnoToStatus(errno, what);
  }
  return UnixSocket(std::move(fd));
}

absl::StatusOr<UnixSocket> UnixSocket::Accept() const {
  while (true) {
    UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (fd) return UnixSocket(std::move(fd));
    switch (errno) {
      case EINTR:
      case ECONNABORTED:
        continue;
      case EINVAL:  // what StopReceiving leaves
        return absl::CancelledError("the Unix socket was shut down");
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        return absl::ResourceExhaustedError(absl::StrCat("accept: ", std::strerror(errno)));
      default:
        return absl::ErrnoToStatus(errno, "accept");
    }
  }
}

absl::StatusOr<uid_t> UnixSocket::PeerUser() const {
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return absl::ErrnoToStatus(errno, "asking who has connected to the Unix socket");
  }
  return peer.uid;
}

absl::Status UnixSocket::Send(std::string_view packet, int descriptor) const {
  ESKER_CHECK(!packet.empty() && packet.size() <= kMaxPacketBytes);
  iovec bytes{.iov_base = const_cast<char*>(packet.data()), .iov_len = packet.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  Control control{};
  if (descriptor >= 0) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    cmsghdr* const part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(descriptor));
    std::memcpy(CMSG_DATA(part), &descriptor, sizeof(descriptor));
  }
  ssize_t sent;
  do {
    sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return absl::OkStatus();
  if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) return Gone();
  if (errno == EAGAIN) {
    return absl::ResourceExhaustedError("the other process does not take what is sent to the Unix socket");
  }
  return absl::ErrnoToStatus(errno, "sending to the Unix socket");
}

absl::StatusOr<Packet> UnixSocket::Receive(std::optional<TimePoint> until) const {
  Packet packet;
  packet.bytes.resize(kMaxPacketBytes);
  iovec bytes{.iov_base = packet.bytes.data(), .iov_len = packet.bytes.size()};
  Control control{};
  msghdr message{};
  ssize_t received;
  do {
    if (!AwaitInput(fd_.get(), until))
      return absl::DeadlineExceededError("nothing came over the Unix socket");
    message = {};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    received = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    // A peer that died with something unread leaves a reset, once. What it has sent is still there.
  } while (received < 0 && (errno == EINTR || errno == EAGAIN || errno == ECONNRESET));
  if (received == 0) return Gone();
  if (received < 0) return absl::ErrnoToStatus(errno, "receiving from the Unix socket");
  packet.descriptor = TakeDescriptor(&message);
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a packet of more than ", kMaxPacketBytes, " bytes came over the Unix socket"));
  }
  packet.bytes.resize(static_cast<size_t>(received));
  return packet;
}

bool UnixSocket::AwaitPacket(TimePoint until) const { return AwaitInput(fd_.get(), until); }

void UnixSocket::StopReceiving() const { ::shutdown(fd_.get(), SHUT_RD); }

void UnixSocket::StopSending() const { ::shutdown(fd_.get(), SHUT_WR); }

bool UnixSocket::IsPeerSilent() const {
  pollfd peer{.fd = fd_.get(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&peer, 1, 0) > 0;
}

}  // namespace esker
