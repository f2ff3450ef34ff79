#include "server/rpc/get_stream.h"

#include <random>

#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

class GetStreamTest : public RpcTest {
 protected:
  GetStreamTest() { StartServer(); }
};

TEST_F(GetStreamTest, AnswersInTheOrderAskedForWithErrorsInBetween) {
  const uint64_t seed = TestSeed();
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 20 << 20, seed, &part);
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(save));
  std::mt19937_64 random(seed);
  constexpr int kWants = 200;
  std::vector<int> wanted;  // -1: what there is not
  for (int i = 0; i < kWants; ++i) {
    wanted.push_back(random() % 5 == 0 ? -1 : static_cast<int>(random() % part.infos.size()));
  }
  std::thread writer([&] {
    for (int i = 0; i < kWants; ++i) {
      const Hash128 hash =
          wanted[i] < 0 ? HashOf(AsBytes("there is no such chunk")) : part.infos[wanted[i]].hash;
      EXPECT_TRUE(client->Write(EncodeWant(1000 + i, hash)));
    }
    client->WritesDone();
  });
  for (int i = 0; i < kWants; ++i) {
    const std::optional<Answer> answer = client->ReadAnswer();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->tag, 1000 + i);
    EXPECT_EQ(answer->is_chunk, wanted[i] >= 0);
    if (answer->is_chunk) {
      EXPECT_EQ(answer->info, part.infos[wanted[i]]);
      EXPECT_TRUE(answer->stored == part.stored[wanted[i]]);
    } else {
      EXPECT_EQ(answer->status.code(), absl::StatusCode::kNotFound);
    }
  }
  writer.join();
  EXPECT_OK(client->Finish());
}

TEST_F(GetStreamTest, MalformedFramesEndTheStream) {
  const uint64_t lease = OpenRead(SaveAll(1, 1000, 1));
  const std::pair<std::string, std::string> hellos[] = {
      {EncodeWant(1, HashOf(AsBytes("x"))), "expected kHello first"},
      {EncodeHello("seven b"), "expected a lease id of 8 bytes in kHello, found 7 bytes"},
      {"", "expected kHello first"},
      {std::string(5000, 'x'), "found a message of 5000 bytes"},
  };
  for (const auto& [message, text] : hellos) {
    RawClient client(channel_, kGetChunks);
    client.Write(message);
    EXPECT_STATUS(client.Finish(), absl::StatusCode::kInvalidArgument, text);
  }
  const std::pair<std::string, std::string> wants[] = {
      {EncodeHello("12345678"), "expected kWant (tag 0)"},
      {EncodeChunkFrame(9, InfoOf("x")), "expected kWant (tag 9)"},
      {EncodeWant(9, HashOf(AsBytes("x"))) + "x", "expected kWant (tag 9)"},
      {EncodeWant(9, HashOf(AsBytes("x"))).substr(0, 31), "expected kWant (tag 9)"},
      {"garbage", "expected kWant"},
  };
  for (const auto& [message, text] : wants) {
    const std::unique_ptr<RawClient> client = OpenGet(lease);
    client->Write(message);
    EXPECT_STATUS(client->Finish(), absl::StatusCode::kInvalidArgument, text);
  }
}

TEST_F(GetStreamTest, AnUnknownLeaseIsRefused) {
  EXPECT_STATUS(OpenGet(12345)->Finish(), absl::StatusCode::kNotFound, "lease");
}

TEST_F(GetStreamTest, ClosingWithNothingWantedIsFine) {
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(SaveAll(1, 1000, 1)));
  client->WritesDone();
  EXPECT_OK(client->Finish());
}

TEST_F(GetStreamTest, AClientThatGoesAwayGivesEverythingBack) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 20 << 20, 1, &part);
  const uint64_t lease = OpenRead(save);
  for (int round = 0; round < 20; ++round) {
    const std::unique_ptr<RawClient> client = OpenGet(lease);
    for (size_t i = 0; i < 8; ++i) client->Write(EncodeWant(i, part.infos[i].hash));
    if (round % 2 == 0) (void)client->ReadMessage();
    client->Cancel();
  }
  EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }));
}

class ImpatientGetStream : public RpcTest {
 protected:
  ImpatientGetStream() {
    config_.rpc.idle_timeout_ms = 900;
    config_.rpc.stalled_chunk_timeout_ms = 200;
    StartServer();
  }
};

TEST_F(ImpatientGetStream, AClientThatWantsNothingIsThrownOut) {
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(SaveAll(1, 1000, 1)));
  EXPECT_STATUS(client->Finish(), absl::StatusCode::kDeadlineExceeded, "no message for 900 ms");
}

TEST_F(ImpatientGetStream, ClientsThatTakeNothingDoNotKeepOthersOut) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 20 << 20, 1, &part);
  const uint64_t lease = OpenRead(save);
  // They want more than reads may hold, and read none of it.
  std::vector<std::unique_ptr<RawClient>> hung;
  for (int i = 0; i < 8; ++i) {
    hung.push_back(OpenGet(lease));
    for (size_t want = 0; want < 8; ++want) hung.back()->Write(EncodeWant(want, part.infos[want].hash));
  }
  const std::unique_ptr<RawClient> client = OpenGet(lease);
  client->Write(EncodeWant(1, part.infos[0].hash));
  const std::optional<Answer> answer = client->ReadAnswer();
  ASSERT_TRUE(answer);
  EXPECT_TRUE(answer->stored == part.stored[0]);
  EXPECT_TRUE(Eventually([this] {
    EXPECT_OK(Call(&v1::Store::Stub::Status, {}));
    return BufferBytesInUse() == 0;
  }));
  for (const auto& each : hung) EXPECT_FALSE(each->Finish().ok());
}

class SmallPoolGetStream : public RpcTest {
 protected:
  SmallPoolGetStream() {
    config_.store.buffer_pool_bytes = 16 << 20;
    config_.rpc.stalled_chunk_timeout_ms = 200;
    StartServer();
  }
};

TEST_F(SmallPoolGetStream, AChunkThatOnlyGrpcTookIsGivenBack) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 60'000, 1, &part);
  // What a client that reads nothing lets through is one chunk and a bit, and gRPC keeps the rest for it: the
  // server's writes end, and yet the second chunk is not gone.
  const std::unique_ptr<RawClient> hung = OpenGet(OpenRead(save));
  for (size_t want = 0; want < 2; ++want) hung->Write(EncodeWant(want, part.infos[0].hash));
  ASSERT_TRUE(Eventually([this] { return BufferBytesInUse() > 0; }));
  EXPECT_TRUE(Eventually([this] {
    EXPECT_OK(Call(&v1::Store::Stub::Status, {}));
    return BufferBytesInUse() == 0;
  }));
  EXPECT_FALSE(hung->Finish().ok());
}

TEST_F(SmallPoolGetStream, ThrownOutStreamsThatWaitForMemoryGiveBackWhatTheyHold) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 8 << 20, 1, &part);
  const uint64_t lease = OpenRead(save);
  // Each soon holds some memory, in messages that nobody takes, and waits for more: together all that reads
  // may have.
  std::vector<std::unique_ptr<RawClient>> hung;
  for (int i = 0; i < 8; ++i) {
    hung.push_back(OpenGet(lease));
    for (size_t want = 0; want < 8; ++want) hung.back()->Write(EncodeWant(want, part.infos[want].hash));
  }
  ASSERT_TRUE(Eventually([this] { return BufferBytesInUse() > 4 << 20; }));
  EXPECT_TRUE(Eventually([this] {
    // So that this client takes from its connection what does not belong to the hung streams.
    EXPECT_OK(Call(&v1::Store::Stub::Status, {}));
    return BufferBytesInUse() == 0;
  }));
  for (const auto& each : hung) EXPECT_FALSE(each->Finish().ok());
}

class ShortLease : public RpcTest {
 protected:
  ShortLease() {
    config_.store.read_lease_ttl_ms = config_.rpc.read_lease_ttl_ms = kLeaseMs;
    config_.store.clock = config_.rpc.clock = &clock_;
    StartServer();
  }

  static constexpr int64_t kLeaseMs = 400;
  FakeClock clock_;
};

TEST_F(ShortLease, EachWantRenewsIt) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 1000, 1, &part);
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(save));
  // Four times its life.
  for (int i = 0; i < 32; ++i) {
    client->Write(EncodeWant(i, part.infos[0].hash));
    const std::optional<Answer> answer = client->ReadAnswer();
    ASSERT_TRUE(answer && answer->is_chunk);
    clock_.Advance(kLeaseMs / 8);
  }
}

TEST_F(ShortLease, TheStreamEndsWhenItIsLost) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 1000, 1, &part);
  const uint64_t lease = OpenRead(save);
  const std::unique_ptr<RawClient> client = OpenGet(lease);
  client->Write(EncodeWant(0, part.infos[0].hash));
  ASSERT_TRUE(client->ReadAnswer());
  v1::CloseReadRequest close;
  close.set_lease_id(lease);
  ASSERT_OK(Call(&v1::Store::Stub::CloseRead, close));
  // The stream asks again after a while.
  for (int i = 1; client->Write(EncodeWant(i, part.infos[0].hash)); ++i) {
    const std::optional<Answer> answer = client->ReadAnswer();
    if (!answer || !answer->is_chunk) break;
    clock_.Advance(kLeaseMs / 8);
  }
  EXPECT_STATUS(client->Finish(), absl::StatusCode::kNotFound, "lease");
}

}  // namespace
}  // namespace esker::testing
