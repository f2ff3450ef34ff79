// Packets between two processes of one host, which may carry a descriptor: a Unix socket (SOCK_SEQPACKET).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/unique_fd.h"

namespace esker {

// The longest packet; the kernel's default buffer holds a few of them.
inline constexpr uint64_t kMaxPacketBytes = 32 << 10;

struct Packet {
  std::string bytes;
  UniqueFd descriptor;  // if one came with it
};

// One end of a connection, or a socket that listens for some. Movable. Two threads may use one end, one of
// them sending and the other receiving.
//
// A packet that Send took is the kernel's: the peer gets it, even if this process dies at once.
class UnixSocket {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  UnixSocket() = default;
  explicit UnixSocket(UniqueFd fd) : fd_(std::move(fd)) {}

  // A path may be longer than an address has room for (108 bytes), if its directory can be opened.
  //
  // Connects without waiting: kUnavailable if nobody listens there (any more), or too many wait to be taken;
  // kNotFound if there is no such file, kPermissionDenied if it may not be used.
  static absl::StatusOr<UnixSocket> Connect(const std::string& path);
  // Listens at `path`, for this user alone; takes the place of a socket that is there already.
  static absl::StatusOr<UnixSocket> Listen(const std::string& path);

  // Waits for a connection. kCancelled after StopReceiving; kResourceExhausted without descriptors to spare.
  absl::StatusOr<UnixSocket> Accept() const;
  // The user of the process that connected.
  absl::StatusOr<uid_t> PeerUser() const;

  // Sends a packet (at most kMaxPacketBytes), with a copy of `descriptor` unless that is -1. Never blocks:
  // kResourceExhausted if the peer has not taken what was sent before. kUnavailable if it is gone.
  absl::Status Send(std::string_view packet, int descriptor = -1) const;
  // The next packet. kDeadlineExceeded if none comes until then; kUnavailable if the peer is gone;
  // kInvalidArgument if the packet is too long.
  absl::StatusOr<Packet> Receive(std::optional<TimePoint> until) const;
  // Waits until Receive would return at once, with a packet or an error; false if it would not by then.
  bool AwaitPacket(TimePoint until) const;

  // Wakes who waits in Accept or Receive: there is nothing more to come. The peer can't send any more, and
  // can still be sent to. Any thread.
  void StopReceiving() const;
  // Nothing more is sent from here; the peer sees that at once (IsPeerSilent). Any thread.
  void StopSending() const;
  // Whether the peer is gone or has said that it sends nothing more. Any thread.
  bool IsPeerSilent() const;

 private:
  UniqueFd fd_;
};

}  // namespace esker
