#include "tests/server/rpc/rpc_fixture.h"

#include <algorithm>
#include <random>
#include <thread>

#include "format/base/bytes.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "format/layout.h"

namespace esker::testing {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;

}  // namespace

std::string RandomBytes(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text(RoundUp(bytes, sizeof(uint64_t)), '\0');
  for (size_t at = 0; at < text.size(); at += sizeof(uint64_t)) {
    StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(text.data()) + at, random());
  }
  text.resize(bytes);
  return text;
}

std::string Bytes(const Hash128& hash) { return std::string(hash.AsText()); }

ChunkInfo InfoOf(const std::string& raw) {
  return {.hash = HashOf(AsBytes(raw)),
          .codec = CodecId::kRaw,
          .dtype = DType::kU8,
          .raw_bytes = raw.size(),
          .stored_bytes = raw.size(),
          .stored_crc32c = Crc32c(AsBytes(raw))};
}

TestPart MakePart(const v1::SaveContext& save, uint64_t bytes, uint64_t seed) {
  TestPart part;
  const ShardSpec shard = {
      .name = "weight", .dtype = DType::kU8, .shape = {bytes}, .box = {.offset = {0}, .extent = {bytes}}};
  const absl::StatusOr<v1::Layout> layout = BuildLayout({shard}, {}, kChunkBytes);
  ESKER_CHECK(layout.ok());
  part.layout_envelope = EncodeEnvelope(EnvelopeKind::kLayout, *layout);
  part.layout_digest = Bytes(HashOf(AsBytes(part.layout_envelope)));

  v1::Part message;
  message.set_run(save.run());
  message.set_step(save.step());
  message.set_attempt(save.attempt());
  message.set_save_id(save.save_id());
  message.set_rank(save.rank());
  message.set_layout_digest(part.layout_digest);
  message.set_raw_bytes(bytes);
  const std::string raw = RandomBytes(bytes, seed);
  uint64_t at = 0;
  for (const uint64_t length : layout->chunk_raw_bytes()) {
    part.stored.push_back(raw.substr(at, length));
    part.infos.push_back(InfoOf(part.stored.back()));
    message.mutable_chunk_hashes()->append(part.infos.back().hash.AsText());
    at += length;
  }
  part.part_envelope = EncodeEnvelope(EnvelopeKind::kPart, message);
  return part;
}

RpcTest::RpcTest() {
  config_.store.directory = directory_ / "data";
  config_.store.segment_bytes = 16 << 20;
  config_.store.buffer_pool_bytes = 32 << 20;
  config_.store.min_free_bytes = 1 << 20;
  config_.coordinator.gc_interval_ms = 0;
  config_.rpc.listen = "127.0.0.1:0";
  config_.rpc.version = "test";
  config_.rpc.data_directory = config_.store.directory;
}

void RpcTest::TearDown() { StopServer(); }

void RpcTest::StartServer() {
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Open(config_);
  ESKER_CHECK(server.ok());
  server_ = *std::move(server);
  grpc::ChannelArguments arguments;
  // Each test its own connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  // A client that reads nothing takes 64 KiB, however fast the machine.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  channel_ = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
  coordinator_ = v1::Coordinator::NewStub(channel_);
  store_ = v1::Store::NewStub(channel_);
}

void RpcTest::StopServer() {
  coordinator_ = nullptr;
  store_ = nullptr;
  channel_ = nullptr;
  if (server_ == nullptr) return;
  EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }))
      << BufferBytesInUse() << " bytes leaked";
  server_ = nullptr;
}

bool RpcTest::Eventually(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

v1::SaveContext RpcTest::Begin(uint64_t step, uint32_t rank, uint32_t world_size,
                               const std::string& incarnation) {
  v1::OpenRunRequest open;
  open.set_run(kRun);
  open.set_incarnation(incarnation);
  const absl::StatusOr<v1::OpenRunResponse> opened = Call(&v1::Coordinator::Stub::OpenRun, open);
  EXPECT_OK(opened);
  v1::BeginSaveRequest begin;
  begin.set_run(kRun);
  begin.set_attempt(opened.ok() ? opened->attempt() : 0);
  begin.set_step(step);
  begin.set_rank(rank);
  begin.set_world_size(world_size);
  begin.set_raw_bytes(64 << 20);
  const absl::StatusOr<v1::BeginSaveResponse> begun = Call(&v1::Coordinator::Stub::BeginSave, begin);
  EXPECT_OK(begun);
  v1::SaveContext save;
  save.set_run(kRun);
  save.set_step(step);
  save.set_attempt(begin.attempt());
  save.set_save_id(begun.ok() ? begun->save_id() : 0);
  save.set_rank(rank);
  return save;
}

std::unique_ptr<RawClient> RpcTest::OpenPut(const v1::SaveContext& save) {
  auto client = std::make_unique<RawClient>(channel_, kPutChunks);
  EXPECT_TRUE(client->Write(EncodeHello(save.SerializeAsString())));
  return client;
}

std::unique_ptr<RawClient> RpcTest::OpenGet(uint64_t lease_id) {
  auto client = std::make_unique<RawClient>(channel_, kGetChunks);
  std::string body(sizeof(lease_id), '\0');
  StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(body.data()), lease_id);
  EXPECT_TRUE(client->Write(EncodeHello(body)));
  return client;
}

void RpcTest::Put(const v1::SaveContext& save, const TestPart& part) {
  const std::unique_ptr<RawClient> client = OpenPut(save);
  std::thread writer([&] {
    for (size_t i = 0; i < part.infos.size(); ++i) client->WriteChunk(i, part.infos[i], part.stored[i]);
    client->WritesDone();
  });
  std::vector<bool> acknowledged(part.infos.size());
  while (const std::optional<Answer> ack = client->ReadAnswer()) {
    EXPECT_OK(ack->status);
    EXPECT_LT(ack->tag, acknowledged.size());
    EXPECT_FALSE(acknowledged[ack->tag]);
    acknowledged[ack->tag] = true;
  }
  writer.join();
  EXPECT_OK(client->Finish());
  EXPECT_EQ(std::count(acknowledged.begin(), acknowledged.end(), true), acknowledged.size());
}

absl::StatusOr<v1::SealPartResponse> RpcTest::Seal(const v1::SaveContext& save, const TestPart& part) {
  v1::SealPartRequest request;
  *request.mutable_save() = save;
  request.set_part_envelope(part.part_envelope);
  request.set_layout_envelope(part.layout_envelope);
  return Call(&v1::Store::Stub::SealPart, request);
}

absl::StatusOr<v1::ReportPartResponse> RpcTest::Report(const v1::SaveContext& save,
                                                       const v1::SealPartResponse& sealed) {
  v1::ReportPartRequest request;
  *request.mutable_save() = save;
  *request.mutable_part() = sealed.entry();
  request.mutable_part()->add_servers(0);
  *request.add_servers() = sealed.server();
  return Call(&v1::Coordinator::Stub::ReportPart, request);
}

v1::SaveContext RpcTest::SaveAll(uint64_t step, uint64_t bytes, uint64_t seed, TestPart* part) {
  const v1::SaveContext save = Begin(step);
  const TestPart made = MakePart(save, bytes, seed);
  Put(save, made);
  const absl::StatusOr<v1::SealPartResponse> sealed = Seal(save, made);
  EXPECT_OK(sealed);
  if (sealed.ok()) {
    const absl::StatusOr<v1::ReportPartResponse> reported = Report(save, *sealed);
    EXPECT_OK(reported);
    EXPECT_TRUE(reported.ok() && reported->status().state() == v1::SaveStatus::COMMITTED);
  }
  if (part != nullptr) *part = made;
  return save;
}

uint64_t RpcTest::OpenRead(const v1::SaveContext& save) {
  v1::OpenReadRequest request;
  request.set_run(save.run());
  request.set_step(save.step());
  request.set_save_id(save.save_id());
  const absl::StatusOr<v1::OpenReadResponse> opened = Call(&v1::Store::Stub::OpenRead, request);
  EXPECT_OK(opened);
  return opened.ok() ? opened->lease_id() : 0;
}

}  // namespace esker::testing
