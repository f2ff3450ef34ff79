#include "server/io/uring_disk.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

// Operations in the kernel at once. More than a device needs for pieces of some MiB; small reads profit.
constexpr unsigned kDepth = 32;
constexpr size_t kMaxQueued = 128;
// The most that the kernel takes as one registered buffer.
constexpr uint64_t kRegisteredPieceBytes = uint64_t{1} << 30;

// Submit() puts operations into a queue; the ring's thread alone touches the ring: it moves them into slots,
// hands those to the kernel, takes the completions and runs the callbacks. One eventfd wakes it, for new
// operations and for completions alike. An operation crosses threads only under mu_.
class UringEngine : public IoEngine {
 public:
  UringEngine() = default;
  ~UringEngine() override;

  // Once, before all else. After an error only to be destroyed.
  absl::Status Start();

  void Submit(IoOp op) override;
  void RegisterMemory(MutableBytes memory) override;
  std::string Describe(const std::string& file_access) const override;

 private:
  absl::Status OpenRing();
  absl::Status TryRing();
  void Wake();

  // The ring's thread.
  void Run();
  void TakeCompletions(std::vector<IoOp>* ended);
  void FillSlots(std::vector<IoOp>* ended);
  void Prepare(unsigned slot);
  // The registered buffer that holds all of `memory`, or -1.
  int RegisteredIndex(MutableBytes memory) const;
  void HandToKernel();
  void WaitForWake();
  bool StopAsked() const;

  // Constant after Start.
  bool ring_open_ = false;
  UniqueFd wake_;
  std::thread thread_;

  mutable Mutex mu_;
  CondVar not_full_;
  std::deque<IoOp> queue_ ABSL_GUARDED_BY(mu_);
  MutableBytes registered_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  // The ring's thread alone, once it runs; RegisterMemory passes the ring's descriptor to the kernel.
  io_uring ring_;
  std::array<IoOp, kDepth> slots_;
  std::vector<unsigned> free_slots_;
  MutableBytes registered_here_;  // copy of registered_
};

absl::Status Refused(int error, const std::string& what) {
  return Annotate(ErrnoStatus(error, what),
                  "io_uring can't be used here (kernel, kernel.io_uring_disabled or the container's seccomp "
                  "profile): allow it, or use the thread-pool engine");
}

UringEngine::~UringEngine() {
  ESKER_CHECK(!OnEngineThread());
  if (thread_.joinable()) {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
      Wake();
    }
    thread_.join();
  }
  if (!ring_open_) return;
  // The kernel unpins the memory of a closed ring some time later; this is at once.
  MutexLock lock(&mu_);
  if (!registered_.empty()) io_uring_unregister_buffers(&ring_);
  io_uring_queue_exit(&ring_);
}

absl::Status UringEngine::Start() {
  ESKER_RETURN_IF_ERROR(OpenRing());
  ESKER_RETURN_IF_ERROR(TryRing());
  wake_ = UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_) return ErrnoStatus(errno, "eventfd for the ring");
  const int result = io_uring_register_eventfd(&ring_, wake_.get());
  if (result < 0) return Refused(-result, "registering an eventfd");
  for (unsigned slot = 0; slot < kDepth; ++slot) free_slots_.push_back(slot);
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "esker-uring");
  return absl::OkStatus();
}

absl::Status UringEngine::OpenRing() {
  const int result = io_uring_queue_init(kDepth, &ring_, 0);
  if (result < 0) return Refused(-result, "io_uring_setup");
  ring_open_ = true;
  const std::unique_ptr<io_uring_probe, void (*)(io_uring_probe*)> probe(io_uring_get_probe_ring(&ring_),
                                                                         io_uring_free_probe);
  if (probe == nullptr) return Refused(ENOSYS, "asking for the operations it knows");
  for (int operation : {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED}) {
    if (!io_uring_opcode_supported(probe.get(), operation)) {
      return Refused(EOPNOTSUPP, absl::StrCat("operation ", operation));
    }
  }
  return absl::OkStatus();
}

// Setting up a ring may be allowed where entering it is not.
absl::Status UringEngine::TryRing() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  ESKER_CHECK(sqe != nullptr);
  io_uring_prep_nop(sqe);
  int result;
  do {
    result = io_uring_submit_and_wait(&ring_, 1);
  } while (result == -EINTR);
  if (result < 0) return Refused(-result, "io_uring_enter");
  io_uring_cqe* cqe = nullptr;
  result = io_uring_wait_cqe(&ring_, &cqe);
  if (result < 0) return Refused(-result, "waiting for a completion");
  io_uring_cqe_seen(&ring_, cqe);
  return absl::OkStatus();
}

void UringEngine::Submit(IoOp op) {
  MutexLock lock(&mu_);
  while (queue_.size() >= kMaxQueued && !OnEngineThread()) not_full_.Wait(&mu_);
  // Where others are queued the thread was woken for them, or will come back for them when a slot is free.
  if (queue_.empty()) Wake();
  queue_.push_back(std::move(op));
}

void UringEngine::RegisterMemory(MutableBytes memory) {
  std::vector<iovec> pieces;
  for (uint64_t start = 0; start < memory.size(); start += kRegisteredPieceBytes) {
    const uint64_t length = std::min(kRegisteredPieceBytes, memory.size() - start);
    pieces.push_back({.iov_base = memory.data() + start, .iov_len = length});
  }
  const int result = io_uring_register_buffers(&ring_, pieces.data(), static_cast<unsigned>(pieces.size()));
  if (result < 0) {
    spdlog::info("io_uring goes on without registered buffers: {}",
                 ErrnoStatus(-result, absl::StrCat("registering ", memory.size(), " bytes")).ToString());
    return;
  }
  MutexLock lock(&mu_);
  registered_ = memory;
}

std::string UringEngine::Describe(const std::string& file_access) const {
  MutexLock lock(&mu_);
  return absl::StrCat("io_uring (", file_access, ", depth ", kDepth, ", ",
                      registered_.empty() ? "plain" : "registered", " buffers)");
}

void UringEngine::Wake() {
  const uint64_t one = 1;
  ssize_t result;
  do {
    result = ::write(wake_.get(), &one, sizeof(one));
  } while (result < 0 && errno == EINTR);
  // EAGAIN: the counter is full, so the thread is awake in any case.
  ESKER_CHECK(result == sizeof(one) || errno == EAGAIN);
}

void UringEngine::Run() {
  MarkEngineThread();
  std::vector<IoOp> ended;
  while (true) {
    TakeCompletions(&ended);
    FillSlots(&ended);
    // Before the callbacks, so that the device has work while they run.
    HandToKernel();
    if (ended.empty()) {
      if (free_slots_.size() == kDepth && StopAsked()) return;
      WaitForWake();
      continue;
    }
    for (IoOp& op : ended) op.Finish();
    ended.clear();
  }
}

void UringEngine::TakeCompletions(std::vector<IoOp>* ended) {
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
    const auto slot = static_cast<unsigned>(io_uring_cqe_get_data64(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    IoOp& op = slots_[slot];
    op.Account(result);
    if (op.ended()) {
      ended->push_back(std::move(op));
      free_slots_.push_back(slot);
    } else {
      Prepare(slot);
    }
  }
}

void UringEngine::FillSlots(std::vector<IoOp>* ended) {
  MutexLock lock(&mu_);
  registered_here_ = registered_;
  while (!queue_.empty()) {
    if (queue_.front().ended()) {  // refused at its start, or of no length
      ended->push_back(std::move(queue_.front()));
    } else if (free_slots_.empty()) {
      break;
    } else {
      const unsigned slot = free_slots_.back();
      free_slots_.pop_back();
      slots_[slot] = std::move(queue_.front());
      Prepare(slot);
    }
    queue_.pop_front();
    not_full_.NotifyOne();
  }
}

void UringEngine::Prepare(unsigned slot) {
  const IoOp& op = slots_[slot];
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  ESKER_CHECK(sqe != nullptr);  // as many entries as slots, and a slot has one at a time
  const MutableBytes rest = op.rest();
  const auto length = static_cast<unsigned>(rest.size());
  const int index = RegisteredIndex(rest);
  if (op.kind() == IoOp::Kind::kRead) {
    if (index >= 0) {
      io_uring_prep_read_fixed(sqe, op.fd(), rest.data(), length, op.position(), index);
    } else {
      io_uring_prep_read(sqe, op.fd(), rest.data(), length, op.position());
    }
  } else {
    if (index >= 0) {
      io_uring_prep_write_fixed(sqe, op.fd(), rest.data(), length, op.position(), index);
    } else {
      io_uring_prep_write(sqe, op.fd(), rest.data(), length, op.position());
    }
  }
  io_uring_sqe_set_data64(sqe, slot);
}

int UringEngine::RegisteredIndex(MutableBytes memory) const {
  const auto start = reinterpret_cast<uintptr_t>(memory.data());
  const auto base = reinterpret_cast<uintptr_t>(registered_here_.data());
  if (start < base || start - base >= registered_here_.size()) return -1;
  const uint64_t first = start - base;
  const uint64_t last = first + memory.size() - 1;
  if (last >= registered_here_.size()) return -1;
  if (first / kRegisteredPieceBytes != last / kRegisteredPieceBytes) return -1;
  return static_cast<int>(first / kRegisteredPieceBytes);
}

void UringEngine::HandToKernel() {
  while (io_uring_sq_ready(&ring_) > 0) {
    const int result = io_uring_submit(&ring_);
    if (result > 0 || result == -EINTR) continue;
    // Short of memory for a moment: what was not taken stays in the ring, and WaitForWake comes back for it
    // soon.
    if (result == 0 || result == -EAGAIN || result == -EBUSY || result == -ENOMEM) return;
    spdlog::critical("io_uring_enter failed: {}", ErrnoStatus(-result, "submitting operations").ToString());
    ESKER_CHECK(result > 0);
  }
}

void UringEngine::WaitForWake() {
  const int timeout_ms = io_uring_sq_ready(&ring_) > 0 ? 1 : -1;
  pollfd waiting{.fd = wake_.get(), .events = POLLIN, .revents = 0};
  const int ready = ::poll(&waiting, 1, timeout_ms);
  ESKER_CHECK(ready >= 0 || errno == EINTR || errno == EAGAIN);
  uint64_t count;
  const ssize_t result = ::read(wake_.get(), &count, sizeof(count));
  ESKER_CHECK(result == sizeof(count) || errno == EAGAIN || errno == EINTR);
}

bool UringEngine::StopAsked() const {
  MutexLock lock(&mu_);
  return stopping_ && queue_.empty();
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> StartUringEngine() {
  auto engine = std::make_unique<UringEngine>();
  ESKER_RETURN_IF_ERROR(engine->Start());
  return engine;
}

}  // namespace esker
