// How a server is reached, and the limits of what clients may do to it.
#pragma once

#include <cstdint>
#include <string>

#include "format/base/clock.h"

namespace esker {

// The server's Unix socket, for clients on its host (local/local_server.h).
struct LocalSocket {
  std::string path;    // empty: there is none
  std::string token;   // 16 bytes
  std::string reason;  // why there is none
};

struct RpcOptions {
  std::string listen = "127.0.0.1:7070";  // "host:port"; port 0: any that is free
  std::string version;                    // for Status, as are the next two
  std::string data_directory;
  uint64_t read_lease_ttl_ms = 30'000;  // what the store grants
  LocalSocket local_socket;             // what GetLocalSocket answers

  // A raw stream on which nothing is under way and no message comes for so long is ended; so is a connection
  // that does not finish HTTP/2's greeting.
  uint64_t idle_timeout_ms = 60'000;
  // From the moment a chunk has its memory until its last byte must be in; also how long a client may leave a
  // message untaken.
  uint64_t stalled_chunk_timeout_ms = 20'000;

  // Messages of the unary calls. A part's layout may be large: 100 bytes a shard.
  uint64_t max_message_bytes = 64 << 20;
  // The unary calls that wait or run, together; what comes on top is refused with kUnavailable.
  uint64_t max_pending_calls = 16'384;
  uint64_t max_pending_request_bytes = 256 << 20;

  const Clock* clock = SystemClock();
};

// --- limits that are part of the protocol (docs/protocol.md)
// -------------------------------------------------------

inline constexpr uint64_t kMaxOfferedHashes = 4096;
inline constexpr int kMaxRanksPerRequest = 1024;
inline constexpr int kMaxLayoutsPerRequest = 1024;
// Answers of GetParts and GetLayouts stop growing here.
inline constexpr uint64_t kAnswerBytes = 8 << 20;
// Chunks of one stream on their way to the disk, and from it.
inline constexpr int kMaxPutsInFlight = 16;
inline constexpr int kMaxGetsInFlight = 8;
// VerifyParts at a time.
inline constexpr int kMaxVerifyCalls = 4;

}  // namespace esker
