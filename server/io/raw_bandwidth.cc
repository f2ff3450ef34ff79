#include "server/io/raw_bandwidth.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "format/base/bytes.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "server/io/buffer_pool.h"
#include "server/io/posix_file.h"

namespace esker {
namespace {

constexpr int kMaxDepth = 1024;

enum class Direction { kRead, kWrite };

struct Transfer {
  int fd;
  Direction direction;
  uint64_t bytes;
  uint64_t block_bytes;
  std::vector<Buffer>* buffers;  // one for each operation at a time
  // What to write: called for block after block, by one thread at a time. Empty: whatever lies in the
  // buffers.
  std::function<absl::Status(MutableBytes block)> fill = nullptr;

  uint64_t blocks() const { return (bytes + block_bytes - 1) / block_bytes; }
  uint64_t offset_of(uint64_t block) const { return block * block_bytes; }
  uint64_t length_of(uint64_t block) const { return std::min(block_bytes, bytes - offset_of(block)); }
};

absl::Status CheckMoved(const Transfer& transfer, uint64_t block, int64_t result) {
  const std::string what = absl::StrCat(transfer.direction == Direction::kRead ? "reading " : "writing ",
                                        transfer.length_of(block), " bytes at offset ",
                                        transfer.offset_of(block), " of the bandwidth test's file");
  if (result < 0) return ErrnoStatus(static_cast<int>(-result), what);
  if (static_cast<uint64_t>(result) == transfer.length_of(block)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(what, ": found only ", result, " moved: free space on the file system"));
}

void PrepareBlock(io_uring* ring, const Transfer& transfer, uint64_t block, size_t buffer) {
  io_uring_sqe* sqe = io_uring_get_sqe(ring);
  ESKER_CHECK(sqe != nullptr);
  void* memory = (*transfer.buffers)[buffer].data();
  const auto length = static_cast<unsigned>(transfer.length_of(block));
  if (transfer.direction == Direction::kRead) {
    io_uring_prep_read(sqe, transfer.fd, memory, length, transfer.offset_of(block));
  } else {
    io_uring_prep_write(sqe, transfer.fd, memory, length, transfer.offset_of(block));
  }
  io_uring_sqe_set_data64(sqe, buffer);
}

// After an error the operations under way still end before it returns: they use the buffers.
absl::Status MoveByUring(io_uring* ring, const Transfer& transfer) {
  std::vector<uint64_t> block_in(transfer.buffers->size());
  std::vector<size_t> idle;
  for (size_t buffer = 0; buffer < transfer.buffers->size(); ++buffer) idle.push_back(buffer);
  uint64_t next = 0;
  absl::Status status;
  while (true) {
    while (status.ok() && next < transfer.blocks() && !idle.empty()) {
      const size_t buffer = idle.back();
      if (transfer.fill) {
        status = transfer.fill((*transfer.buffers)[buffer].bytes().subspan(0, transfer.length_of(next)));
        if (!status.ok()) break;
      }
      block_in[buffer] = next;
      PrepareBlock(ring, transfer, next++, buffer);
      idle.pop_back();
      // While the next block comes in, this one is under way.
      if (transfer.fill) static_cast<void>(io_uring_submit(ring));
    }
    if (idle.size() == transfer.buffers->size()) return status;
    const int submitted = io_uring_submit_and_wait(ring, 1);
    ESKER_CHECK(submitted >= 0 || submitted == -EINTR || submitted == -EAGAIN || submitted == -EBUSY);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring, &cqe) == 0) {
      const auto buffer = static_cast<size_t>(io_uring_cqe_get_data64(cqe));
      if (status.ok()) status = CheckMoved(transfer, block_in[buffer], cqe->res);
      io_uring_cqe_seen(ring, cqe);
      idle.push_back(buffer);
    }
  }
}

absl::Status MoveByThreads(const Transfer& transfer) {
  uint64_t next = 0;
  Mutex mu;
  absl::Status status;
  std::vector<std::thread> threads;
  for (Buffer& buffer : *transfer.buffers) {
    threads.emplace_back([&transfer, &next, &mu, &status, &buffer] {
      while (true) {
        uint64_t block = 0;
        {
          MutexLock lock(&mu);
          if (!status.ok() || next == transfer.blocks()) return;
          block = next++;
          if (transfer.fill) status = transfer.fill(buffer.bytes().subspan(0, transfer.length_of(block)));
          if (!status.ok()) return;
        }
        const uint64_t length = transfer.length_of(block);
        const auto offset = static_cast<off_t>(transfer.offset_of(block));
        const ssize_t moved = transfer.direction == Direction::kRead
                                  ? ::pread(transfer.fd, buffer.data(), length, offset)
                                  : ::pwrite(transfer.fd, buffer.data(), length, offset);
        const absl::Status block_status = CheckMoved(transfer, block, moved < 0 ? -errno : moved);
        if (block_status.ok()) continue;
        MutexLock lock(&mu);
        status.Update(block_status);
        return;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return status;
}

// Also tries the ring, since setting it up may be allowed where entering it is not.
bool OpenRing(unsigned depth, io_uring* ring) {
  if (io_uring_queue_init(depth, ring, 0) != 0) return false;
  io_uring_prep_nop(io_uring_get_sqe(ring));
  io_uring_cqe* cqe = nullptr;
  if (io_uring_submit_and_wait(ring, 1) == 1 && io_uring_peek_cqe(ring, &cqe) == 0) {
    io_uring_cqe_seen(ring, cqe);
    return true;
  }
  io_uring_queue_exit(ring);
  return false;
}

absl::StatusOr<UniqueFd> OpenNamelessFile(const std::string& directory) {
  std::string path = absl::StrCat(directory, "/.esker-bandwidth-XXXXXX");
  UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, absl::StrCat("creating a file for the bandwidth test in ", directory));
  UniqueFd direct(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_DIRECT));
  // At once, so that nothing is left behind even when the process is killed.
  if (::unlink(path.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("removing ", path));
  return direct ? std::move(direct) : std::move(fd);
}

}  // namespace

class BandwidthTest {
 public:
  static absl::StatusOr<std::unique_ptr<BandwidthTest>> Open(const std::string& directory, uint64_t bytes,
                                                             uint64_t block_bytes, int depth);
  ~BandwidthTest() {
    if (ring_open_) io_uring_queue_exit(&ring_);
  }

  absl::Status Write(const std::function<absl::Status(MutableBytes)>& fill = nullptr);
  absl::Status Read() { return Move(Direction::kRead, nullptr); }
  void DropPageCache() { (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED); }

 private:
  BandwidthTest(UniqueFd fd, uint64_t bytes, uint64_t block_bytes, int depth);
  absl::Status Move(Direction direction, const std::function<absl::Status(MutableBytes)>& fill);

  const UniqueFd fd_;
  const uint64_t bytes_;
  const uint64_t block_bytes_;
  BufferPool pool_;
  std::vector<Buffer> buffers_;
  io_uring ring_;
  bool ring_open_ = false;
};

absl::StatusOr<std::unique_ptr<BandwidthTest>> BandwidthTest::Open(const std::string& directory,
                                                                   uint64_t bytes, uint64_t block_bytes,
                                                                   int depth) {
  if (bytes == 0 || bytes % kBlockBytes != 0 || block_bytes == 0 || block_bytes % kBlockBytes != 0 ||
      block_bytes > (uint64_t{1} << 30) || depth < 1 || depth > kMaxDepth) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected sizes that are multiples of ", kBlockBytes, ", blocks up to 1 GiB and a depth from 1 to ",
        kMaxDepth, ", found ", bytes, " bytes in blocks of ", block_bytes, " at depth ", depth));
  }
  ESKER_ASSIGN_OR_RETURN(UniqueFd fd, OpenNamelessFile(directory));
  return std::unique_ptr<BandwidthTest>(new BandwidthTest(std::move(fd), bytes, block_bytes, depth));
}

BandwidthTest::BandwidthTest(UniqueFd fd, uint64_t bytes, uint64_t block_bytes, int depth)
    : fd_(std::move(fd)),
      bytes_(bytes),
      block_bytes_(block_bytes),
      pool_(block_bytes * static_cast<uint64_t>(depth), block_bytes) {
  uint64_t state = 0x9E3779B97F4A7C15;
  for (int i = 0; i < depth; ++i) {
    buffers_.push_back(pool_.Acquire(block_bytes));
    // Not zeros or repeats, which some disks store for nothing.
    const MutableBytes memory = buffers_.back().bytes();
    for (uint64_t at = 0; at < memory.size(); at += sizeof(state)) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      StoreLittle(memory.data() + at, state);
    }
  }
  ring_open_ = OpenRing(static_cast<unsigned>(depth), &ring_);
}

absl::Status BandwidthTest::Move(Direction direction, const std::function<absl::Status(MutableBytes)>& fill) {
  const Transfer transfer{fd_.get(), direction, bytes_, block_bytes_, &buffers_, fill};
  return ring_open_ ? MoveByUring(&ring_, transfer) : MoveByThreads(transfer);
}

absl::Status BandwidthTest::Write(const std::function<absl::Status(MutableBytes)>& fill) {
  ESKER_RETURN_IF_ERROR(Move(Direction::kWrite, fill));
  if (::fdatasync(fd_.get()) != 0) return ErrnoStatus(errno, "fdatasync of the bandwidth test's file");
  return absl::OkStatus();
}

namespace {

template <typename Action>
absl::StatusOr<double> BytesPerSecond(uint64_t bytes, const Action& action) {
  const auto start = std::chrono::steady_clock::now();
  ESKER_RETURN_IF_ERROR(action());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes) / seconds.count();
}

constexpr time_t kPeerTimeoutSeconds = 30;

absl::Status SocketError(int error, const std::string& what) {
  if (error == EAGAIN || error == EWOULDBLOCK) {
    return absl::DeadlineExceededError(absl::StrCat(what, ": nothing came for ", kPeerTimeoutSeconds, " s"));
  }
  return ErrnoStatus(error, what);
}

absl::Status LimitWaiting(int socket) {
  const timeval limit{.tv_sec = kPeerTimeoutSeconds, .tv_usec = 0};
  if (::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "limiting how long a socket waits");
}

absl::Status ReceiveAll(int socket, MutableBytes into) {
  while (!into.empty()) {
    const ssize_t got = ::recv(socket, into.data(), into.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SocketError(errno, "receiving from the bandwidth test's sender");
    if (got == 0)
      return absl::UnavailableError("the bandwidth test's sender closed its connection too early");
    into = into.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

}  // namespace

class TcpToDisk::Impl {
 public:
  Impl(std::unique_ptr<BandwidthTest> test, uint64_t bytes) : test_(std::move(test)), bytes_(bytes) {}

  absl::Status Listen() {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    if (!listener_ || ::bind(listener_.get(), generic, length) != 0 || ::listen(listener_.get(), 1) != 0 ||
        ::getsockname(listener_.get(), generic, &length) != 0) {
      return ErrnoStatus(errno, "listening for the bandwidth test's sender");
    }
    port_ = ntohs(address.sin_port);
    return LimitWaiting(listener_.get());
  }

  absl::StatusOr<double> Receive() {
    const UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int error = errno;
    listener_.Reset();  // whoever connects too late must not send for ever
    if (!connection) return SocketError(error, "waiting for the bandwidth test's sender");
    ESKER_RETURN_IF_ERROR(LimitWaiting(connection.get()));
    const auto fill = [&connection](MutableBytes block) { return ReceiveAll(connection.get(), block); };
    return BytesPerSecond(bytes_, [&] { return test_->Write(fill); });
  }

  uint16_t port() const { return port_; }

 private:
  const std::unique_ptr<BandwidthTest> test_;
  const uint64_t bytes_;
  UniqueFd listener_;
  uint16_t port_ = 0;
};

TcpToDisk::TcpToDisk(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TcpToDisk::~TcpToDisk() = default;

absl::StatusOr<std::unique_ptr<TcpToDisk>> TcpToDisk::Open(const std::string& directory, uint64_t bytes,
                                                           uint64_t block_bytes, int depth) {
  ESKER_ASSIGN_OR_RETURN(auto test, BandwidthTest::Open(directory, bytes, block_bytes, depth));
  ESKER_RETURN_IF_ERROR(test->Write());
  auto impl = std::make_unique<Impl>(std::move(test), bytes);
  ESKER_RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<TcpToDisk>(new TcpToDisk(std::move(impl)));
}

uint16_t TcpToDisk::port() const { return impl_->port(); }

absl::StatusOr<double> TcpToDisk::Receive() { return impl_->Receive(); }

absl::StatusOr<double> MeasureWriteBandwidth(const std::string& directory, uint64_t bytes,
                                             uint64_t block_bytes, int depth, bool into_written_file) {
  ESKER_ASSIGN_OR_RETURN(const auto test, BandwidthTest::Open(directory, bytes, block_bytes, depth));
  if (into_written_file) ESKER_RETURN_IF_ERROR(test->Write());
  return BytesPerSecond(bytes, [&] { return test->Write(); });
}

absl::StatusOr<double> MeasureReadBandwidth(const std::string& directory, uint64_t bytes,
                                            uint64_t block_bytes, int depth) {
  ESKER_ASSIGN_OR_RETURN(const auto test, BandwidthTest::Open(directory, bytes, block_bytes, depth));
  ESKER_RETURN_IF_ERROR(test->Write());
  test->DropPageCache();
  return BytesPerSecond(bytes, [&] { return test->Read(); });
}

}  // namespace esker
