// What a directory's disk gives a bare loop of reads or writes: the yardstick that `esker bench` compares
// with. It uses liburing directly and nothing of the Disk engines, so that it can't share their mistakes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace esker {

inline constexpr uint64_t kRawBlockBytes = uint64_t{4} << 20;
inline constexpr int kRawDepth = 8;

// Bytes per second of writing `bytes` with O_DIRECT in pieces of `block_bytes`, `depth` at a time, and one
// fdatasync at the end. `into_written_file` writes the file once before, untimed: that is what a recycled
// segment gives; otherwise the file is new and the file system allocates as it goes. Both sizes must be
// multiples of kBlockBytes.
//
// Takes that much disk for the while, in a file that has no name, and depth * block_bytes of memory. Where
// io_uring is refused, `depth` threads write instead; where O_DIRECT is, the page cache is used. Blocks until
// done.
absl::StatusOr<double> MeasureWriteBandwidth(const std::string& directory, uint64_t bytes,
                                             uint64_t block_bytes = kRawBlockBytes, int depth = kRawDepth,
                                             bool into_written_file = true);

// The same for reading a file that was just written (untimed) and is not in the page cache.
absl::StatusOr<double> MeasureReadBandwidth(const std::string& directory, uint64_t bytes,
                                            uint64_t block_bytes = kRawBlockBytes, int depth = kRawDepth);

// What a bare program gives that takes bytes from one TCP connection of this host and writes them, as
// MeasureWriteBandwidth does, into a file that was written before. Not thread-safe.
class TcpToDisk {
 public:
  // Writes the file and listens on the loopback, at `port`.
  static absl::StatusOr<std::unique_ptr<TcpToDisk>> Open(const std::string& directory, uint64_t bytes,
                                                         uint64_t block_bytes = kRawBlockBytes,
                                                         int depth = kRawDepth);
  ~TcpToDisk();
  TcpToDisk(const TcpToDisk&) = delete;
  TcpToDisk& operator=(const TcpToDisk&) = delete;

  uint16_t port() const;

  // Bytes per second, from the moment a sender has connected until `bytes` are durable; then closes the
  // connection. Once. Blocks; kDeadlineExceeded if nobody connects, or nothing comes, for 30 s. kUnavailable
  // if the sender ends too early.
  absl::StatusOr<double> Receive();

 private:
  class Impl;
  explicit TcpToDisk(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
