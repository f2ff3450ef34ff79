// Restores over the Unix socket, by clients that play by the rules and by others.
#include "server/local/local_reads.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "format/base/text.h"
#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"

namespace esker::testing {
namespace {

using Code = absl::StatusCode;

// A chunk's answer.
struct Given {
  uint64_t tag = 0;
  absl::Status status;
  ChunkInfo info;
  std::string stored;  // a copy of what lies in the server's buffers
};

class ReadsClient {
 public:
  ReadsClient(const std::string& path, const std::string& token) {
    absl::StatusOr<UnixSocket> socket = UnixSocket::Connect(path);
    EXPECT_OK(socket.status());
    if (!socket.ok()) return;
    socket_ = *std::move(socket);
    v1::LocalRequest request;
    request.mutable_hello()->set_token(token);
    request.mutable_hello()->set_reads(true);
    Send(request);
    absl::StatusOr<Packet> packet = Receive();
    EXPECT_OK(packet.status());
    v1::LocalAnswer answer;
    if (!packet.ok() || !answer.ParseFromString(packet->bytes) || !answer.has_welcome()) return;
    buffers_bytes_ = answer.welcome().buffers_bytes();
    descriptor_ = std::move(packet->descriptor);
    at_ = ::mmap(nullptr, buffers_bytes_, PROT_READ, MAP_SHARED, descriptor_.get(), 0);
    EXPECT_NE(at_, MAP_FAILED);
  }
  ~ReadsClient() { ::munmap(at_, buffers_bytes_); }

  bool greeted() const { return buffers_bytes_ > 0; }
  const UnixSocket& socket() const { return socket_; }
  int descriptor() const { return descriptor_.get(); }
  void* buffers() const { return at_; }

  void Send(const v1::LocalRequest& request) { SendText(request.SerializeAsString()); }
  void SendText(const std::string& packet) { EXPECT_OK(socket_.Send(packet)); }
  void Want(uint64_t lease_id, uint64_t tag, const Hash128& hash) {
    WantFrame(lease_id, EncodeWant(tag, hash));
  }
  void WantFrame(uint64_t lease_id, const std::string& frame) {
    v1::LocalRequest request;
    request.mutable_reads()->set_lease_id(lease_id);
    request.mutable_reads()->add_wants(frame);
    Send(request);
  }
  void Release(uint64_t tag) {
    v1::LocalRequest request;
    request.mutable_reads()->add_released(tag);
    Send(request);
  }
  // The next answer; a status alone if the connection was ended.
  Given Next() {
    Given given;
    const absl::StatusOr<Packet> packet = Receive();
    v1::LocalAnswer answer;
    given.status = packet.status();
    if (!packet.ok()) return given;
    EXPECT_TRUE(answer.ParseFromString(packet->bytes));
    if (answer.has_failed()) {
      given.status = absl::Status(static_cast<Code>(answer.failed().code()), answer.failed().message());
      absl::Status end;  // after what was on its way
      while (end.ok()) end = Receive().status();
      EXPECT_EQ(end.code(), Code::kUnavailable) << "the connection goes on after a failure";
      return given;
    }
    const ByteView frame = AsBytes(answer.chunk().frame());
    const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(frame);
    EXPECT_OK(prefix.status());
    given.tag = prefix->tag;
    if (prefix->type == FrameType::kError) {
      EXPECT_OK(DecodeStatusFrame(frame, &given.status));
      return given;
    }
    const absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(frame);
    EXPECT_OK(info.status());
    given.info = *info;
    EXPECT_LE(answer.chunk().offset() + info->stored_bytes, buffers_bytes_);
    given.stored.assign(static_cast<const char*>(at_) + answer.chunk().offset(), info->stored_bytes);
    return given;
  }
  void Close() { socket_ = UnixSocket(); }

 private:
  absl::StatusOr<Packet> Receive() {
    return socket_.Receive(std::chrono::steady_clock::now() + std::chrono::seconds(30));
  }

  UnixSocket socket_;
  UniqueFd descriptor_;
  uint64_t buffers_bytes_ = 0;
  void* at_ = nullptr;
};

class LocalReadsTest : public RpcTest {
 protected:
  static constexpr uint64_t kPartBytes = 20 << 20;  // more than clients may hold together: 20 chunks

  void Start(uint64_t stalled_chunk_timeout_ms = 20'000) {
    config_.rpc.stalled_chunk_timeout_ms = stalled_chunk_timeout_ms;
    StartServer();
    lease_ = OpenRead(SaveAll(1, kPartBytes, 7, &part_));
    const auto socket = Call(&v1::Store::Stub::GetLocalSocket, v1::LocalSocketRequest());
    ASSERT_OK(socket.status());
    path_ = socket->path();
    token_ = socket->token();
  }

  std::unique_ptr<ReadsClient> Client() {
    auto client = std::make_unique<ReadsClient>(path_, token_);
    EXPECT_TRUE(client->greeted());
    return client;
  }

  void ExpectServing() {
    const auto client = Client();
    client->Want(lease_, 5, part_.infos[2].hash);
    const Given given = client->Next();
    EXPECT_OK(given.status);
    EXPECT_EQ(given.stored, part_.stored[2]);
    client->Release(5);
  }

  TestPart part_;
  uint64_t lease_ = 0;
  std::string path_;
  std::string token_;
};

TEST_F(LocalReadsTest, GivesChunksOutOfTheBuffers) {
  Start();
  const auto client = Client();
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i < part_.infos.size(); ++i) client->Want(lease_, i, part_.infos[i].hash);
    for (size_t i = 0; i < part_.infos.size(); ++i) {
      const Given given = client->Next();
      ASSERT_OK(given.status);
      ASSERT_LT(given.tag, part_.infos.size());
      EXPECT_EQ(given.info.hash, part_.infos[given.tag].hash);
      EXPECT_EQ(given.stored, part_.stored[given.tag]);
      client->Release(given.tag);
    }
  }
}

TEST_F(LocalReadsTest, NobodyButTheServerCanWriteToTheBuffers) {
  Start();
  const auto client = Client();
  const int fd = client->descriptor();
  const char byte = 1;
  EXPECT_EQ(::pwrite(fd, &byte, 1, 0), -1);
  EXPECT_EQ(::ftruncate(fd, 0), -1);
  EXPECT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(::mprotect(client->buffers(), 4096, PROT_READ | PROT_WRITE), -1);
  // The way round: opening it anew.
  const UniqueFd again(::open(StrCat("/proc/self/fd/", fd).c_str(), O_RDWR | O_CLOEXEC));
  if (again) {
    EXPECT_EQ(::pwrite(again.get(), &byte, 1, 0), -1);
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again.get(), 0), MAP_FAILED);
  }
}

TEST_F(LocalReadsTest, SaysWhatIsMissingOrDamagedAndGoesOn) {
  Start();
  const absl::StatusOr<ChunkLocation> location = server_->store()->Locate(part_.infos[3].hash);
  ASSERT_OK(location.status());
  std::string path = location->file;
  if (path.find('/') == std::string::npos) path = config_.store.directory + "/segments/" + path;
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(
        static_cast<std::streamoff>(location->offset + PayloadOffset(part_.infos[3].stored_bytes) + 1000));
    file.put(static_cast<char>(part_.stored[3][1000] ^ 1));
    ASSERT_TRUE(file.good()) << path;
  }
  const auto client = Client();
  client->Want(lease_, 1, HashOf(AsBytes("no such chunk")));
  EXPECT_STATUS(client->Next().status, Code::kNotFound, "");
  client->Want(lease_, 2, part_.infos[3].hash);
  EXPECT_STATUS(client->Next().status, Code::kDataLoss, "segment");
  client->Want(lease_, 2, part_.infos[4].hash);
  EXPECT_EQ(client->Next().stored, part_.stored[4]);
}

TEST_F(LocalReadsTest, EndsAConnectionWhoseLeaseIsLost) {
  Start();
  const auto client = Client();
  client->Want(lease_ + 1, 1, part_.infos[0].hash);
  EXPECT_STATUS(client->Next().status, Code::kNotFound, "lease");
  ExpectServing();
}

TEST_F(LocalReadsTest, EndsConnectionsThatSendNonsense) {
  Start();
  const Hash128 hash = part_.infos[0].hash;
  const std::map<std::string, std::function<void(ReadsClient*)>> attacks = {
      {"LocalRequest", [&](ReadsClient* client) { client->SendText("\xff\xff\xff"); }},
      {"expected reads",
       [&](ReadsClient* client) {
         v1::LocalRequest request;
         request.mutable_save()->set_request_bytes(10);
         client->Send(request);
       }},
      {"", [&](ReadsClient* client) { client->WantFrame(lease_, EncodeWant(1, hash).substr(0, 20)); }},
      {"not held", [&](ReadsClient* client) { client->Release(1); }},
      {"tag 1",
       [&](ReadsClient* client) {
         client->Want(lease_, 1, hash);
         EXPECT_OK(client->Next().status);
         client->Want(lease_, 1, hash);
       }},
      {"most that may be", [&](ReadsClient* client) {
         v1::LocalRequest request;
         request.mutable_reads()->set_lease_id(lease_);
         for (uint64_t tag = 0; tag <= LocalReads::kMaxLocalReads; ++tag) {
           request.mutable_reads()->add_wants(EncodeWant(tag, hash));
         }
         client->Send(request);
       }}};
  for (const auto& [message, attack] : attacks) {
    const auto client = Client();
    attack(client.get());
    Given given = client->Next();
    while (given.status.ok()) given = client->Next();  // what was read before
    EXPECT_STATUS(given.status, Code::kInvalidArgument, message);
  }
  ExpectServing();
}

TEST_F(LocalReadsTest, AClientThatReleasesNothingLosesItsMemoryToOthers) {
  Start(/*stalled_chunk_timeout_ms=*/300);
  const auto greedy = Client();
  for (size_t i = 0; i < part_.infos.size(); ++i) greedy->Want(lease_, i, part_.infos[i].hash);
  // All that clients may hold; the rest waits.
  ASSERT_OK(greedy->Next().status);
  ExpectServing();
  Given given = greedy->Next();
  while (given.status.ok()) given = greedy->Next();
  EXPECT_STATUS(given.status, Code::kDeadlineExceeded, "300");
  EXPECT_TRUE(greedy->socket().IsPeerSilent());
}

TEST_F(LocalReadsTest, AClientThatIsGoneHoldsNothing) {
  Start();
  for (int round = 0; round < 5; ++round) {
    const auto client = Client();
    for (size_t i = 0; i < part_.infos.size(); ++i) client->Want(lease_, i, part_.infos[i].hash);
    for (int i = 0; i < round; ++i) EXPECT_OK(client->Next().status);
    client->Close();
    EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }));
  }
  ExpectServing();
}

TEST_F(LocalReadsTest, ASilentClientDoesNotHoldUpShutdown) {
  Start();
  const auto client = Client();
  for (size_t i = 0; i < part_.infos.size(); ++i) client->Want(lease_, i, part_.infos[i].hash);
  EXPECT_OK(client->Next().status);
  server_->Shutdown(std::chrono::milliseconds(0));
  EXPECT_TRUE(client->socket().IsPeerSilent());
}

TEST_F(LocalReadsTest, OtherUsersAreKeptOut) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  Start();
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(config_.store.directory.c_str(), 0755), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::setuid(65534) != 0) ::_exit(2);
    ::_exit(absl::IsPermissionDenied(UnixSocket::Connect(path_).status()) ? 0 : 1);
  }
  int state = 0;
  ASSERT_EQ(::waitpid(pid, &state, 0), pid);
  EXPECT_EQ(state, 0);
  // Even where the file's mode would let them in.
  ASSERT_EQ(::chmod(path_.c_str(), 0777), 0);
  const pid_t second = ::fork();
  if (second == 0) {
    if (::setuid(65534) != 0) ::_exit(2);
    const absl::StatusOr<UnixSocket> socket = UnixSocket::Connect(path_);
    if (!socket.ok()) ::_exit(3);
    const absl::StatusOr<Packet> packet =
        socket->Receive(std::chrono::steady_clock::now() + std::chrono::seconds(30));
    v1::LocalAnswer answer;
    if (!packet.ok() || !answer.ParseFromString(packet->bytes)) ::_exit(4);
    ::_exit(answer.failed().code() == static_cast<uint32_t>(Code::kPermissionDenied) ? 0 : 5);
  }
  ASSERT_EQ(::waitpid(second, &state, 0), second);
  EXPECT_EQ(state, 0);
}

}  // namespace
}  // namespace esker::testing
