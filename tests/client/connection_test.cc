#include "client/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "client/admin.h"
#include "esker/esker.h"
#include "format/base/text.h"
#include "tests/client/fake_server.h"
#include "tests/client/state_builder.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

// A socket that listens on a free port of the loopback interface.
class Listener {
 public:
  Listener() {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ESKER_CHECK(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    ESKER_CHECK(::listen(fd_, 16) == 0);
    socklen_t length = sizeof(address);
    ESKER_CHECK(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) == 0);
    address_ = StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~Listener() { Close(); }

  const std::string& address() const { return address_; }
  int fd() const { return fd_; }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
  std::string address_;
};

CheckpointerOptions OptionsFor(const std::string& address, uint64_t timeout_ms) {
  CheckpointerOptions options;
  options.server = address;
  options.run = "test";
  options.connect_timeout_ms = timeout_ms;
  return options;
}

TEST(SendPlan, NearbyItIsAStreamForEachThreadWithSmallMessages) {
  for (const int us : {0, 100, 999}) {
    const SendPlan plan = SendPlanFor(std::chrono::microseconds(us), 2, 1);
    EXPECT_EQ(plan.streams, 2u);
    EXPECT_EQ(plan.body_bytes, uint64_t{1} << 20);
  }
}

TEST(SendPlan, OnALongWayMessagesGrowAndThenThereAreMoreStreams) {
  SendPlan plan = SendPlanFor(std::chrono::milliseconds(1), 2, 1);
  EXPECT_EQ(plan.streams, 2u);
  EXPECT_EQ(plan.body_bytes, uint64_t{3} << 20);
  plan = SendPlanFor(std::chrono::milliseconds(10), 2, 1);
  EXPECT_EQ(plan.streams, 12u);
  EXPECT_EQ(plan.body_bytes, uint64_t{4} << 20);
}

TEST(SendPlan, ClientsShareWhatIsOnItsWay) {
  for (const auto round_trip : {std::chrono::milliseconds(20), std::chrono::milliseconds(3'600'000)}) {
    EXPECT_EQ(SendPlanFor(round_trip, 1, 1).streams, 16u);
    EXPECT_EQ(SendPlanFor(round_trip, 1, 4).streams, 4u);
    const SendPlan plan = SendPlanFor(round_trip, 8, 1'000'000);
    EXPECT_EQ(plan.streams, 8u);
    EXPECT_EQ(plan.body_bytes, uint64_t{1} << 20);
  }
}

TEST(Connection, KnowsTheShortestRoundTrip) {
  const FakeServer server;
  ASSERT_OK_AND_ASSIGN(const auto connection, Connection::Make(server.address()));
  EXPECT_EQ(connection->round_trip().count(), 0);
  std::chrono::microseconds shortest = std::chrono::microseconds::max();
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    v1::OpenRunRequest open;
    open.set_run("run");
    open.set_incarnation("first");
    ASSERT_OK(connection->Call("OpenRun", &v1::Coordinator::Stub::OpenRun, open, Deadline::After(10'000)));
    const auto took = std::chrono::steady_clock::now() - begin;
    shortest = std::min(shortest, std::chrono::ceil<std::chrono::microseconds>(took));
    EXPECT_GT(connection->round_trip().count(), 0);
    EXPECT_LE(connection->round_trip(), shortest);
  }
}

TEST(Connection, AddressesAreChecked) {
  for (const char* address : {"", "host", "host:", ":7070", "host:0", "host:70000", "host:port", "host:-1"}) {
    EXPECT_STATUS(Connection::Make(address), absl::StatusCode::kInvalidArgument, "host:port");
  }
  EXPECT_OK(Connection::Make("localhost:7070"));
  EXPECT_OK(Connection::Make("[::1]:7070"));
}

TEST(Connection, RefusedSaysWhereAndWhatToCheck) {
  Listener listener;
  const std::string address = listener.address();
  listener.Close();  // nobody is there now
  const absl::Status status = Checkpointer::Open(OptionsFor(address, 300)).status();
  EXPECT_STATUS(status, absl::StatusCode::kUnavailable, address);
  EXPECT_STATUS(status, absl::StatusCode::kUnavailable, "is eskerd running");
  EXPECT_STATUS((*Reader::Open({.server = address, .connect_timeout_ms = 300}))->List("test"),
                absl::StatusCode::kUnavailable, address);
  EXPECT_STATUS((*AdminClient::Make(address, 300))->Status(), absl::StatusCode::kUnavailable, address);
}

TEST(Connection, AServerThatSaysNothingIsGivenUp) {
  Listener listener;
  EXPECT_STATUS(Checkpointer::Open(OptionsFor(listener.address(), 500)), absl::StatusCode::kUnavailable,
                listener.address());
}

TEST(Connection, AServerThatIsSomethingElseIsGivenUp) {
  Listener listener;
  std::thread answers([&] {
    const std::string text = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    while (true) {
      const int fd = ::accept(listener.fd(), nullptr, nullptr);
      if (fd < 0) return;
      static_cast<void>(::send(fd, text.data(), text.size(), MSG_NOSIGNAL));
      ::close(fd);
    }
  });
  EXPECT_STATUS(Checkpointer::Open(OptionsFor(listener.address(), 500)), absl::StatusCode::kUnavailable,
                listener.address());
  ::shutdown(listener.fd(), SHUT_RDWR);
  answers.join();
}

TEST(Connection, AServerIsFoundByName) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP()
      << "gRPC's resolver passes strings between its threads in ways that ThreadSanitizer does not see, "
         "and Debian's c-ares leaks the name";
#endif
  FakeServer server;
  const std::string port = server.address().substr(server.address().rfind(':'));
  CheckpointerOptions options = TestOptions(server);
  options.server = StrCat("localhost", port);
  EXPECT_OK(Checkpointer::Open(options));
}

TEST(Connection, AServerThatComesLateIsFound) {
  FakeServer server;
  server.Stop();
  std::thread starts([&] { server.Start(); });
  EXPECT_OK(Checkpointer::Open(TestOptions(server)));
  starts.join();
}

}  // namespace
}  // namespace esker::testing
