// A server that is away, or is none: the training loop is not held up, and memory does not grow (P6, P7).
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class Unreachable : public ServerTest {
 protected:
  static std::vector<GlobalTensor> Tensors() {
    return {{"weights", ElementType::kF32, {4, 1 << 20}}};
  }  // 16 MiB
};

// A port that nobody listens on, or that somebody listens on who never says a word.
class Listener {
 public:
  explicit Listener(bool listens) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    ESKER_CHECK(::bind(socket_, reinterpret_cast<sockaddr*>(&address), length) == 0);
    if (listens) ESKER_CHECK(::listen(socket_, 16) == 0);
    ESKER_CHECK(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~Listener() { ::close(socket_); }
  const std::string& address() const { return address_; }

 private:
  const int socket_;
  std::string address_;
};

void ExpectUnavailable(const std::string& address) {
  CheckpointerOptions options = JobOptions(address, "run", "first");
  options.connect_timeout_ms = 1500;
  const auto began = steady_clock::now();
  EXPECT_STATUS(Checkpointer::Open(options), absl::StatusCode::kUnavailable, address);
  ReaderOptions reader_options;
  reader_options.server = address;
  reader_options.connect_timeout_ms = 1500;
  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open(reader_options));
  EXPECT_STATUS(reader->List("run"), absl::StatusCode::kUnavailable, address);
  EXPECT_LT(steady_clock::now() - began, milliseconds(20'000));
}

TEST_F(Unreachable, AServerThatIsNotThereIsReportedInTime) { ExpectUnavailable(Listener(false).address()); }

TEST_F(Unreachable, APeerThatNeverAnswersIsReportedInTime) { ExpectUnavailable(Listener(true).address()); }

TEST_F(Unreachable, AnAddressThatIsNoneIsRefused) {
  for (const std::string address : {"", "no-port", "127.0.0.1:", "127.0.0.1:port"}) {
    EXPECT_EQ(Checkpointer::Open(JobOptions(address, "run", "first")).status().code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
}

TEST_F(Unreachable, OpenWaitsForAServerThatIsJustStarting) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  server_->Kill();
  CheckpointerOptions options = Options();
  absl::Status opened = absl::UnknownError("not tried");
  std::thread opener([&] { opened = Checkpointer::Open(options).status(); });
  const absl::Status started = server_->Start();
  opener.join();
  ASSERT_OK(started);
  EXPECT_OK(opened);
}

TEST_F(Unreachable, SaveReturnsAfterTheCopyAndItsHandleSaysWhatFailed) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  CheckpointerOptions options = Options();
  options.save_timeout_ms = 1000;
  ASSERT_OK_AND_ASSIGN(auto checkpointer, Checkpointer::Open(options));
  const JobState state = MakeJobState(Tensors(), 1, 1);
  ASSERT_OK(checkpointer->Save(1, state[0].state()).status());  // warms up; ends in any way
  server_->Kill();
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(2, state[0].state()));
  const auto began = steady_clock::now();
  const absl::Status failed = handle.Wait();
  EXPECT_LT(steady_clock::now() - began, milliseconds(20'000));
  EXPECT_THAT(failed.code(),
              ::testing::AnyOf(absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded))
      << failed;
  EXPECT_EQ(handle.Progress().phase, SaveProgress::Phase::kFailed);

  // And when the server is back, saving goes on.
  ASSERT_OK(server_->Start());
  CheckpointerOptions again = Options("run", "second");
  checkpointer.reset();
  ASSERT_OK_AND_ASSIGN(checkpointer, Checkpointer::Open(again));
  ASSERT_OK_AND_ASSIGN(const SaveHandle next, checkpointer->Save(3, state[0].state()));
  EXPECT_OK(next.Wait());
}

// With kSkip the loop pays for nothing but the first copy, however long the server is away.
TEST_F(Unreachable, TheLoopIsNotHeldUpWhileAServerIsAway) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  CheckpointerOptions options = Options();
  options.in_flight = InFlightPolicy::kSkip;
  ASSERT_OK_AND_ASSIGN(auto checkpointer, Checkpointer::Open(options));
  server_->Kill();
  const JobState state = MakeJobState(Tensors(), 1, 1);
  const auto began = steady_clock::now();
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, checkpointer->Save(1, state[0].state()));
  for (uint64_t step = 2; step <= 100; ++step) {
    ASSERT_OK_AND_ASSIGN(const SaveHandle skipped, checkpointer->Save(step, state[0].state()));
    EXPECT_EQ(skipped.Result().code(), absl::StatusCode::kCancelled) << skipped.Result();
  }
  EXPECT_LT(steady_clock::now() - began, milliseconds(10'000));
  EXPECT_FALSE(first.Done());
  ASSERT_OK(server_->Start());
  ASSERT_OK(first.Wait());
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 1, Tensors(), 1, 1), "");
}

TEST_F(Unreachable, MemoryStaysFlatOverManyFailedSaves) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer keeps what was freed";
#endif
  ASSERT_NO_FATAL_FAILURE(StartServer());
  CheckpointerOptions options = Options();
  options.save_timeout_ms = 20;
  ASSERT_OK_AND_ASSIGN(auto checkpointer, Checkpointer::Open(options));
  server_->Kill();
  const JobState state = MakeJobState(Tensors(), 1, 1);
  uint64_t settled_bytes = 0;
  for (uint64_t step = 1; step <= 200; ++step) {
    ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(step, state[0].state()));
    ASSERT_FALSE(handle.Wait().ok());
    if (step == 50) settled_bytes = ResidentBytes(::getpid());
  }
  const uint64_t at_end_bytes = ResidentBytes(::getpid());
  std::printf("%.1f MiB after 50 failed saves of 16 MiB, %.1f MiB after 200\n",
              static_cast<double>(settled_bytes) / (1 << 20), static_cast<double>(at_end_bytes) / (1 << 20));
  EXPECT_LT(at_end_bytes, settled_bytes + (16u << 20));
}

}  // namespace
}  // namespace esker::testing
