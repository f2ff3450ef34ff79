// A local server with a store and a coordinator, and clients of its socket that need not play by the rules.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/chunk_record.h"
#include "format/envelope.h"
#include "format/layout.h"
#include "format/proto/local.pb.h"
#include "server/local/local_server.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {

inline constexpr uint64_t kArenaBytes = 1 << 20;
inline constexpr uint64_t kChunkBytes = 40'000;
inline constexpr uint64_t kRequestOffset = 512 << 10;

// A client of the socket, whose memory is an arena.
class LocalClient {
 public:
  explicit LocalClient(const LocalServer& server)
      : memory_(::memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    EXPECT_EQ(::ftruncate(memory_.get(), kArenaBytes), 0);
    EXPECT_EQ(::fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    void* at = ::mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
    EXPECT_NE(at, MAP_FAILED);
    bytes_ = static_cast<std::byte*>(at);
    absl::StatusOr<UnixSocket> socket = UnixSocket::Connect(server.path());
    EXPECT_OK(socket.status());
    if (socket.ok()) socket_ = *std::move(socket);
  }
  ~LocalClient() { ::munmap(bytes_, kArenaBytes); }

  void SendText(std::string_view packet) { EXPECT_OK(socket_.Send(packet)); }
  void Send(const v1::LocalRequest& request, int descriptor = -1) {
    EXPECT_OK(socket_.Send(request.SerializeAsString(), descriptor));
  }
  // The hello, and the answer to it.
  v1::LocalAnswer Greet(const std::string& token, uint64_t arena_bytes = kArenaBytes) {
    v1::LocalRequest request;
    request.mutable_hello()->set_token(token);
    request.mutable_hello()->set_arena_bytes(arena_bytes);
    Send(request, memory_.get());
    return Next();
  }
  void SendSave(const v1::ArenaSave& save) {
    const std::string text = save.SerializeAsString();
    std::memcpy(bytes_ + kRequestOffset, text.data(), text.size());
    v1::LocalRequest request;
    request.mutable_save()->set_request_offset(kRequestOffset);
    request.mutable_save()->set_request_bytes(text.size());
    Send(request);
  }
  void SendReady(uint64_t chunks) {
    v1::LocalRequest request;
    request.mutable_ready()->set_chunks(chunks);
    Send(request);
  }
  // The next answer; one without a kind if the server has closed the connection.
  v1::LocalAnswer Next() {
    v1::LocalAnswer answer;
    const absl::StatusOr<Packet> packet =
        socket_.Receive(std::chrono::steady_clock::now() + std::chrono::seconds(30));
    EXPECT_FALSE(absl::IsDeadlineExceeded(packet.status()));
    if (packet.ok()) {
      EXPECT_TRUE(answer.ParseFromString(packet->bytes));
    }
    return answer;
  }
  // The answers to a save that is begun.
  void AwaitAccepted() {
    EXPECT_TRUE(Next().has_taken());
    EXPECT_TRUE(Next().has_accepted());
  }
  // The answer that ends a save.
  v1::LocalAnswer AwaitEnd() {
    while (true) {
      v1::LocalAnswer answer = Next();
      if (!answer.has_taken() && !answer.has_accepted() && !answer.has_progress()) return answer;
    }
  }

  std::byte* bytes() { return bytes_; }
  void Fill(uint8_t seed) {
    for (uint64_t i = 0; i < kRequestOffset; ++i)
      bytes_[i] = static_cast<std::byte>(i * 31 + seed + i / 4096);
  }
  void Close() { socket_ = UnixSocket(); }

 private:
  UniqueFd memory_;
  std::byte* bytes_ = nullptr;
  UnixSocket socket_;
};

class LocalServerTest : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    reader_ = std::make_unique<ChunkReader>(store_.get());
    absl::StatusOr<std::unique_ptr<LocalServer>> local = LocalServer::Listen(
        directory_ / "local.sock", coordinator_.get(), store_.get(), reader_.get(), std::chrono::seconds(20));
    ASSERT_OK(local.status());
    local_ = *std::move(local);
    v1::ServerInfo info;
    info.set_id(store_->id());
    info.set_address("127.0.0.1:1");
    local_->Serve(info);
    attempt_ = OpenRun("first");
  }
  void TearDown() override {
    local_ = nullptr;
    reader_ = nullptr;
    CoordinatorTest::TearDown();
  }

  // One tensor of three chunks.
  v1::ArenaSave SaveOf(uint64_t step, uint32_t rank = 0, uint32_t world_size = 1) {
    const std::vector<ShardSpec> shards = {{"w", DType::kU8, {3 * kChunkBytes}, WholeBox({3 * kChunkBytes})}};
    const absl::StatusOr<v1::Layout> layout = BuildLayout(shards, {}, kChunkBytes);
    EXPECT_OK(layout.status());
    v1::ArenaSave save;
    save.set_run(kRun);
    save.set_step(step);
    save.set_attempt(attempt_);
    save.set_rank(rank);
    save.set_world_size(world_size);
    save.set_layout_envelope(EncodeEnvelope(EnvelopeKind::kLayout, *layout));
    return save;
  }

  // A client that greeted.
  std::unique_ptr<LocalClient> Client() {
    auto client = std::make_unique<LocalClient>(*local_);
    EXPECT_TRUE(client->Greet(local_->token()).has_welcome());
    return client;
  }

  // The server serves others as ever.
  void ExpectServing(uint64_t step) {
    const auto client = Client();
    client->Fill(static_cast<uint8_t>(step));
    client->SendSave(SaveOf(step));
    client->SendReady(3);
    EXPECT_TRUE(client->AwaitEnd().has_sealed());
    EXPECT_NE(Steps().find(std::to_string(step)), std::string::npos);
  }

  std::unique_ptr<ChunkReader> reader_;
  std::unique_ptr<LocalServer> local_;
  uint64_t attempt_ = 0;
};

}  // namespace esker::testing
