#include "server/rpc/rpc_server.h"

#include <arpa/inet.h>
#include <grpcpp/impl/client_unary_call.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "format/base/text.h"
#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

// A bare TCP connection to the server.
class Connection {
 public:
  explicit Connection(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Connection() { ::close(fd_); }
  void Send(const std::string& bytes) { (void)::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // Whether the server closes within a minute.
  bool AwaitClose() {
    char bytes[4096];
    while (true) {
      pollfd event = {.fd = fd_, .events = POLLIN, .revents = 0};
      if (::poll(&event, 1, 60'000) != 1) return false;
      if (::recv(fd_, bytes, sizeof(bytes), 0) <= 0) return true;
    }
  }

 private:
  const int fd_;
};

// Asks the standard health service. Its messages are so small that they are written by hand here: {1:
// service}, {1: status}.
std::string CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC, channel);
  const std::string text =
      service.empty() ? "" : StrCat("\n", std::string(1, static_cast<char>(service.size())), service);
  const grpc::Slice slice(text);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      channel.get(), method, &context, request, &response);
  if (!status.ok()) return status.error_message();
  grpc::Slice answer;
  if (!response.DumpToSingleSlice(&answer).ok()) return "unreadable";
  const std::string bytes(answer.begin(), answer.end());
  return bytes == "\x08\x01" ? "SERVING" : StrCat("status of ", bytes.size(), " bytes");
}

class RpcServerTest : public RpcTest {};

TEST_F(RpcServerTest, TheHealthServiceAnswersServing) {
  StartServer();
  EXPECT_EQ(CheckHealth(channel_, ""), "SERVING");
  EXPECT_EQ(CheckHealth(channel_, "esker.v1.Store"), "SERVING");
  EXPECT_EQ(CheckHealth(channel_, "esker.v1.Coordinator"), "SERVING");
}

TEST_F(RpcServerTest, SurvivesGarbageOnItsPort) {
  StartServer();
  std::mt19937_64 random(TestSeed());
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  for (int i = 0; i < 50; ++i) {
    Connection connection(server_->port());
    const std::string garbage = RandomBytes(random() % 10'000, random());
    switch (i % 4) {
      case 0:
        connection.Send(garbage);
        break;
      case 1:
        connection.Send("GET / HTTP/1.1\r\nHost: esker\r\n\r\n");
        break;
      case 2:
        connection.Send(preface.substr(0, random() % preface.size()));
        break;
      case 3:
        connection.Send(preface + std::string("\0\0\0\4\0\0\0\0\0", 9) + garbage);
        break;
    }
  }
  EXPECT_EQ(CheckHealth(channel_, ""), "SERVING");
  SaveAll(1, 1000, 1);
}

TEST_F(RpcServerTest, AConnectionThatSaysNothingIsClosed) {
  config_.rpc.idle_timeout_ms = 200;
  StartServer();
  Connection connection(server_->port());
  EXPECT_TRUE(connection.AwaitClose());
}

TEST_F(RpcServerTest, APortInUseIsNamedWithTheLikelyReason) {
  StartServer();
  ServerConfig second = config_;
  second.store.directory = directory_ / "second";
  second.rpc.listen = server_->address();
  EXPECT_STATUS(Server::Open(second), absl::StatusCode::kUnavailable,
                StrCat("can't listen on ", server_->address(), ": Address already in use; another process"));
}

TEST_F(RpcServerTest, AnAddressThatIsNotOursIsNamed) {
  config_.rpc.listen = "192.0.2.1:0";
  EXPECT_STATUS(Server::Open(config_), absl::StatusCode::kUnavailable, "this machine has no such address");
  config_.rpc.listen = "no-such-host.invalid:7070";
  EXPECT_STATUS(Server::Open(config_), absl::StatusCode::kUnavailable, "the host is unknown");
}

TEST_F(RpcServerTest, AMessageOverTheLimitIsRefused) {
  config_.rpc.max_message_bytes = 1 << 20;
  StartServer();
  v1::OpenRunRequest request;
  request.set_run(std::string(2 << 20, 'x'));
  EXPECT_STATUS(Call(&v1::Coordinator::Stub::OpenRun, request), absl::StatusCode::kResourceExhausted,
                "larger than max");
}

TEST_F(RpcServerTest, StoppingEndsIdleStreamsAtOnce) {
  StartServer();
  const v1::SaveContext save = Begin(1);
  const std::unique_ptr<RawClient> put = OpenPut(save);
  put->WriteChunk(1, InfoOf("hello"), "hello");
  ASSERT_TRUE(put->ReadAnswer());
  TestPart part;
  const std::unique_ptr<RawClient> get = OpenGet(OpenRead(SaveAll(2, 1000, 1, &part)));
  get->Write(EncodeWant(1, part.infos[0].hash));
  ASSERT_TRUE(get->ReadAnswer());
  const auto begun = std::chrono::steady_clock::now();
  server_->Shutdown(std::chrono::seconds(30));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(20));
  EXPECT_STATUS(put->Finish(), absl::StatusCode::kUnavailable, "stopping");
  EXPECT_STATUS(get->Finish(), absl::StatusCode::kUnavailable, "stopping");
}

TEST_F(RpcServerTest, StoppingCancelsWhatHangs) {
  StartServer();
  const std::unique_ptr<RawClient> client = OpenPut(Begin(1));
  const std::string raw = RandomBytes(4 << 20, 1);
  client->Write(EncodeChunkFrame(7, InfoOf(raw)));
  client->Write(raw.substr(0, 100));
  ASSERT_TRUE(Eventually([this] { return BufferBytesInUse() > 0; }));
  server_->Shutdown(std::chrono::milliseconds(100));
  EXPECT_EQ(BufferBytesInUse(), 0);
  EXPECT_FALSE(client->Finish().ok());
}

TEST_F(RpcServerTest, ServesAgainAfterARestart) {
  StartServer();
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 2 << 20, 1, &part);
  StopServer();
  StartServer();
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(save));
  client->Write(EncodeWant(1, part.infos[1].hash));
  const std::optional<Answer> answer = client->ReadAnswer();
  ASSERT_TRUE(answer);
  EXPECT_TRUE(answer->stored == part.stored[1]);
}

}  // namespace
}  // namespace esker::testing
