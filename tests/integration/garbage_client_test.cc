// Clients that send garbage, too much, half of it, or nothing: each is turned away, and the server goes on
// for the others.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "format/frame.h"
#include "format/hash.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class GarbageClient : public ServerTest {
 protected:
  void SetUp() override {
    StartServer();
    ASSERT_OK_AND_ASSIGN(attempt_, client_->OpenRun("run", "first"));
  }
  // Whatever a test did: the server is as good as new.
  void TearDown() override {
    if (client_ == nullptr) return;
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options("healthy"), 2));
    ASSERT_OK(job->Save(1, MakeJobState({{"weights", ElementType::kF32, {4, 300'000}}}, 2, 1)));
    EXPECT_EQ(RestoreDifference(server_->address(), "healthy", 1,
                                {{"weights", ElementType::kF32, {4, 300'000}}}, 2, 1),
              "");
    EXPECT_TRUE(server_->process()->Running());
  }

  int Connect() {
    int port = 0;
    ESKER_CHECK(absl::SimpleAtoi(server_->address().substr(server_->address().find(':') + 1), &port));
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ESKER_CHECK(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    return socket;
  }

  // How PutChunks ends for one who sends just these messages.
  absl::Status PutChunks(const std::vector<std::string>& messages) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    const auto stream = client_->OpenStream("PutChunks", &context);
    for (const std::string& message : messages) {
      if (!stream->Write(RawMessage(message))) break;
    }
    stream->WritesDone();
    grpc::ByteBuffer answer;
    while (stream->Read(&answer)) {
    }
    return FromGrpcStatus(stream->Finish());
  }

  uint64_t attempt_ = 0;
};

TEST_F(GarbageClient, RandomBytesOnTheSocketHarmNobody) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 50; ++i) {
    const int socket = Connect();
    std::string bytes = i % 2 == 0 ? "" : "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";  // HTTP/2's greeting
    for (uint64_t length = random() % 5000; length > 0; --length)
      bytes.push_back(static_cast<char>(random()));
    [[maybe_unused]] const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    ::close(socket);
  }
}

TEST_F(GarbageClient, SilentConnectionsHarmNobody) {
  std::vector<int> sockets;
  for (int i = 0; i < 200; ++i) sockets.push_back(Connect());
  ASSERT_OK(client_->ServerStatus());
  for (const int socket : sockets) ::close(socket);
}

TEST_F(GarbageClient, AStreamThatBreaksTheProtocolIsEndedWithTheReason) {
  RawRank rank(client_.get(), "run", attempt_, 0, 1);
  ASSERT_OK(rank.Begin(1, std::string(10'000, 'x')));
  const std::string hello = EncodeHello(rank.context().SerializeAsString());
  const ChunkInfo chunk = rank.chunks()[0];
  const std::string head = EncodeChunkFrame(1, chunk);
  using Code = absl::StatusCode;

  EXPECT_EQ(PutChunks({"garbage"}).code(), Code::kInvalidArgument);
  EXPECT_EQ(PutChunks({std::string(100, '\0')}).code(), Code::kInvalidArgument);
  EXPECT_EQ(PutChunks({""}).code(), Code::kInvalidArgument);
  EXPECT_EQ(PutChunks({head}).code(), Code::kInvalidArgument) << "no hello";
  EXPECT_EQ(PutChunks({EncodeHello("not a message")}).code(), Code::kInvalidArgument);
  EXPECT_EQ(PutChunks({hello, hello}).code(), Code::kInvalidArgument) << "two hellos";
  EXPECT_EQ(PutChunks({hello, "garbage"}).code(), Code::kInvalidArgument);
  EXPECT_EQ(PutChunks({hello, EncodeWant(1, chunk.hash)}).code(), Code::kInvalidArgument)
      << "a want on a put stream";
  EXPECT_FALSE(PutChunks({hello, head}).ok()) << "a chunk without its bytes";
  EXPECT_FALSE(PutChunks({hello, head, std::string(9'999, 'x')}).ok()) << "a byte is missing";
  EXPECT_EQ(PutChunks({hello, head, std::string(10'001, 'x')}).code(), Code::kInvalidArgument)
      << "a byte too many";
  EXPECT_EQ(PutChunks({hello, head, std::string(8 << 20, 'x')}).ok(), false) << "a message that is too long";

  ChunkInfo lying = chunk;
  lying.raw_bytes = lying.stored_bytes = uint64_t{1} << 63;
  EXPECT_EQ(PutChunks({hello, EncodeChunkFrame(1, lying)}).code(), Code::kInvalidArgument);
  lying.raw_bytes = lying.stored_bytes = kMaxChunkBytes + 1;
  EXPECT_EQ(PutChunks({hello, EncodeChunkFrame(1, lying)}).code(), Code::kInvalidArgument);

  // None of it was kept, and the honest rank goes on.
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse status, client_->ServerStatus());
  EXPECT_EQ(status.chunks(), 0u);
  ASSERT_OK(rank.Upload());
  ASSERT_OK(rank.Seal());
  ASSERT_OK_AND_ASSIGN(const v1::SaveStatus saved, rank.Report());
  EXPECT_EQ(saved.state(), v1::SaveStatus::COMMITTED);
}

TEST_F(GarbageClient, AChunkDamagedOnItsWayIsRefused) {
  RawRank rank(client_.get(), "run", attempt_, 0, 1);
  ASSERT_OK(rank.Begin(1, std::string(10'000, 'x')));
  grpc::ClientContext context;
  const auto stream = client_->OpenStream("PutChunks", &context);
  std::string damaged(10'000, 'x');
  damaged[5'000] = 'y';
  ASSERT_TRUE(stream->Write(RawMessage(EncodeHello(rank.context().SerializeAsString()))));
  ASSERT_TRUE(stream->Write(RawMessage(EncodeChunkFrame(1, rank.chunks()[0]))));
  ASSERT_TRUE(stream->Write(RawMessage(damaged)));
  grpc::ByteBuffer answer;
  absl::Status refused;
  if (stream->Read(&answer)) {
    grpc::Slice slice;
    ASSERT_TRUE(answer.DumpToSingleSlice(&slice).ok());
    ASSERT_OK(DecodeStatusFrame({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()}, &refused));
  }
  stream->WritesDone();
  const absl::Status ended = FromGrpcStatus(stream->Finish());
  EXPECT_FALSE(refused.ok() && ended.ok());
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, rank.Seal());
  EXPECT_EQ(sealed.missing_hashes().size(), 16u);
}

TEST_F(GarbageClient, RequestsOverTheLimitsAreRefused) {
  using Code = absl::StatusCode;
  RawRank rank(client_.get(), "run", attempt_, 0, 1);
  ASSERT_OK(rank.Begin(1, "x"));
  v1::OfferChunksRequest offer;
  *offer.mutable_save() = rank.context();
  offer.set_hashes(std::string(16 * 4097, 'h'));
  EXPECT_STATUS(client_->Call(&v1::Store::Stub::OfferChunks, offer), Code::kInvalidArgument, "4096");
  offer.set_hashes(std::string(17, 'h'));
  EXPECT_STATUS(client_->Call(&v1::Store::Stub::OfferChunks, offer), Code::kInvalidArgument, "16");

  const auto begin = [&](uint64_t step, uint32_t of_rank, uint32_t world_size, uint64_t raw_bytes) {
    v1::BeginSaveRequest request;
    request.set_run("run");
    request.set_attempt(attempt_);
    request.set_step(step);
    request.set_rank(of_rank);
    request.set_world_size(world_size);
    request.set_raw_bytes(raw_bytes);
    return client_->Call(&v1::Coordinator::Stub::BeginSave, request).status();
  };
  EXPECT_STATUS(begin(~uint64_t{0}, 0, 1, 1), Code::kInvalidArgument, "step");
  EXPECT_STATUS(begin(2, 5, 5, 1), Code::kInvalidArgument, "rank");
  EXPECT_STATUS(begin(2, 0, 0, 1), Code::kInvalidArgument, "world");
  EXPECT_STATUS(begin(2, 0, 0xffffffff, 1), Code::kInvalidArgument, "world");
  EXPECT_STATUS(begin(2, 0, 1, ~uint64_t{0}), Code::kResourceExhausted, "");
  // Another world size than the ranks before it said.
  ASSERT_OK(begin(3, 0, 2, 1));
  EXPECT_EQ(begin(3, 1, 3, 1).code(), Code::kAlreadyExists);

  v1::OpenRunRequest open;
  open.set_run("run");
  open.set_incarnation(std::string(300, 'i'));
  EXPECT_STATUS(client_->Call(&v1::Coordinator::Stub::OpenRun, open), Code::kInvalidArgument, "256");
  open.set_incarnation("");
  EXPECT_STATUS(client_->Call(&v1::Coordinator::Stub::OpenRun, open), Code::kInvalidArgument, "incarnation");
}

TEST_F(GarbageClient, ASealOfGarbageIsRefused) {
  RawRank rank(client_.get(), "run", attempt_, 0, 1);
  ASSERT_OK(rank.Begin(1, "x"));
  ASSERT_OK(rank.Upload());
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 50; ++i) {
    v1::SealPartRequest request;
    *request.mutable_save() = rank.context();
    for (uint64_t n = random() % 300; n > 0; --n)
      request.mutable_part_envelope()->push_back(static_cast<char>(random()));
    for (uint64_t n = random() % 300; n > 0; --n)
      request.mutable_layout_envelope()->push_back(static_cast<char>(random()));
    EXPECT_FALSE(client_->Call(&v1::Store::Stub::SealPart, request).ok());
  }
  ASSERT_OK(rank.Seal());
}

TEST_F(GarbageClient, ReadsWithoutALeaseAreRefused) {
  RawRank rank(client_.get(), "run", attempt_, 0, 1);
  ASSERT_OK(rank.Save(1, std::string(10'000, 'x')));
  for (const std::string& hello : {std::string(8, '\xee'), std::string("abc"), std::string()}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    const auto stream = client_->OpenStream("GetChunks", &context);
    stream->Write(RawMessage(EncodeHello(hello)));
    stream->Write(RawMessage(EncodeWant(1, rank.chunks()[0].hash)));
    stream->WritesDone();
    grpc::ByteBuffer answer;
    while (stream->Read(&answer)) {
    }
    EXPECT_FALSE(stream->Finish().ok()) << hello.size();
  }
}

}  // namespace
}  // namespace esker::testing
