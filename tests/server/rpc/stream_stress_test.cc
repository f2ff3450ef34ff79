// Streams that are broken off at any moment, under load: nothing leaks, and those that are not broken off
// work.
#include <atomic>
#include <random>
#include <thread>

#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

class StreamStress : public RpcTest {
 protected:
  StreamStress() {
    config_.rpc.idle_timeout_ms = 2000;
    config_.rpc.stalled_chunk_timeout_ms = 500;
    StartServer();
  }

  // Sends chunks until it is cancelled, closes, sends garbage, or falls silent in the middle of one.
  void PutAtRandom(const v1::SaveContext& save, const TestPart& part, uint64_t seed) {
    std::mt19937_64 random(seed);
    const std::unique_ptr<RawClient> client = OpenPut(save);
    const size_t whole = random() % 6;
    for (size_t i = 0; i < whole; ++i) {
      const size_t chunk = random() % part.infos.size();
      if (!client->WriteChunk(i, part.infos[chunk], part.stored[chunk], 1 + random() % (1 << 20))) return;
    }
    const size_t chunk = random() % part.infos.size();
    const std::string& stored = part.stored[chunk];
    client->Write(EncodeChunkFrame(whole, part.infos[chunk]));
    if (random() % 2 == 0) client->Write(stored.substr(0, 1 + random() % (stored.size() - 1)));
    switch (random() % 4) {
      case 0:
        return client->Cancel();
      case 1:
        client->WritesDone();
        break;
      case 2:
        client->Write(std::string(random() % 5000, 'x'));
        break;
      case 3:
        break;  // the server's patience ends it
    }
    EXPECT_FALSE(client->Finish().ok());
  }

  void GetAtRandom(uint64_t lease, const TestPart& part, uint64_t seed) {
    std::mt19937_64 random(seed);
    const std::unique_ptr<RawClient> client = OpenGet(lease);
    const size_t wants = 1 + random() % 8;
    for (size_t i = 0; i < wants; ++i) {
      if (!client->Write(EncodeWant(i, part.infos[random() % part.infos.size()].hash))) return;
    }
    const size_t answers = random() % (wants + 1);
    for (size_t i = 0; i < answers; ++i) {
      const std::optional<Answer> answer = client->ReadAnswer();
      if (!answer) return;
      EXPECT_TRUE(answer->is_chunk);
      EXPECT_EQ(HashOf(AsBytes(answer->stored)), answer->info.hash);
    }
    if (random() % 2 == 0) client->Cancel();
  }
};

TEST_F(StreamStress, BrokenStreamsLeakNothingAndWholeOnesWork) {
  const uint64_t seed = TestSeed();
  TestPart committed;
  const uint64_t lease = OpenRead(SaveAll(1, 12 << 20, seed, &committed));
  const v1::SaveContext broken = Begin(2);
  const v1::SaveContext whole = Begin(3);
  const TestPart part = MakePart(broken, 12 << 20, seed + 1);
  const TestPart whole_part = MakePart(whole, 24 << 20, seed + 2);

  constexpr int kThreads = 6;
  constexpr int kRounds = 12;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < kRounds; ++round) {
        const uint64_t own_seed = seed + 1000 * thread + round;
        if (thread % 3 == 2) {
          GetAtRandom(lease, committed, own_seed);
        } else {
          PutAtRandom(broken, part, own_seed);
        }
      }
    });
  }
  Put(whole, whole_part);
  for (std::thread& thread : threads) thread.join();

  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, Seal(whole, whole_part));
  ASSERT_OK_AND_ASSIGN(const v1::ReportPartResponse reported, Report(whole, sealed));
  EXPECT_EQ(reported.status().state(), v1::SaveStatus::COMMITTED);
  EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; })) << BufferBytesInUse();
  EXPECT_OK(server_->store()->CheckConsistency());
}

}  // namespace
}  // namespace esker::testing
