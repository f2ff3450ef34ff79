#include "server/store/sessions.h"

#include <thread>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace esker::store {
namespace {

using Held = Sessions::Held;
using PutStep = Sessions::PutStep;

Hash128 HashNumber(uint8_t number) {
  Hash128 hash;
  hash.bytes[0] = number;
  return hash;
}

PartRef Part(uint64_t step, uint32_t rank = 0) {
  return {.save = {.run = "run", .step = step, .save_id = 1}, .attempt = 1, .rank = rank};
}

ChunkInfo Info(uint8_t number, uint64_t bytes = 100) {
  return {.hash = HashNumber(number), .raw_bytes = bytes, .stored_bytes = bytes};
}

class SessionsTest : public ::testing::Test {
 protected:
  std::vector<Held> Pin(const PartRef& part, const std::vector<Hash128>& hashes) {
    absl::StatusOr<std::vector<Held>> held = sessions_.PinForPart(part, hashes);
    EXPECT_OK(held);
    return *std::move(held);
  }
  PutStep BeginPut(const PartRef& part, const ChunkInfo& info) {
    PutDone done = [this](const absl::Status&) { ++done_; };
    const absl::StatusOr<PutStep> step = sessions_.BeginPut(part, info, &done);
    EXPECT_OK(step);
    return *step;
  }
  LetGo FinishWrite(const PartRef& part, const ChunkInfo& info, uint64_t segment_id = 1,
                    uint64_t write_number = 1) {
    LetGo let_go;
    const WrittenChunk chunk{info, {.segment_id = segment_id, .generation = 1, .offset = 4096}, write_number};
    for (const PutDone& done : sessions_.FinishWrite(part, chunk, &let_go)) done(absl::OkStatus());
    return let_go;
  }
  void Write(const PartRef& part, const ChunkInfo& info, uint64_t segment_id = 1, uint64_t write_number = 1) {
    EXPECT_EQ(BeginPut(part, info), PutStep::kLookUp);
    FinishWrite(part, info, segment_id, write_number);
  }

  esker::testing::FakeClock clock_;
  Sessions sessions_{&clock_, 6};
  int done_ = 0;
};

TEST_F(SessionsTest, PromisesAddUpAndEndWithTheirSaves) {
  EXPECT_EQ(sessions_.Promise(Part(1), 60, 100), std::nullopt);
  EXPECT_EQ(sessions_.Promise(Part(2), 50, 100), 60u);
  EXPECT_EQ(sessions_.Promise(Part(2), 40, 100), std::nullopt);
  EXPECT_EQ(sessions_.promised_bytes(), 100u);
  EXPECT_EQ(sessions_.Promise(Part(1), 61, 100), 40u);  // refused: the old promise stands
  EXPECT_EQ(sessions_.promised_bytes(), 100u);
  EXPECT_EQ(sessions_.Promise(Part(1), ~uint64_t{0}, 100), 40u);
  sessions_.EndPart(Part(1));
  EXPECT_EQ(sessions_.promised_bytes(), 40u);
  sessions_.EndSave(Part(2).save);
  EXPECT_EQ(sessions_.promised_bytes(), 0u);
}

TEST_F(SessionsTest, WritesAreTakenOffThePromise) {
  EXPECT_EQ(sessions_.Promise(Part(1), 10'000, 100'000), std::nullopt);
  Write(Part(1), Info(1));
  EXPECT_EQ(sessions_.promised_bytes(), 10'000 - RecordBytes(100));
  EXPECT_EQ(sessions_.Promise(Part(1), 10'000, 100'000), std::nullopt);
  EXPECT_EQ(sessions_.promised_bytes(), 10'000 - RecordBytes(100));
  Write(Part(1), Info(2, 50'000));
  EXPECT_EQ(sessions_.promised_bytes(), 0u);
}

TEST_F(SessionsTest, HeldTellsHowFarAChunkIs) {
  EXPECT_EQ(Pin(Part(1), {HashNumber(1)})[0], Held::kLookUp);
  EXPECT_EQ(BeginPut(Part(2), Info(1)), PutStep::kLookUp);
  EXPECT_EQ(Pin(Part(1), {HashNumber(1)})[0], Held::kWriting);
  FinishWrite(Part(2), Info(1));
  EXPECT_EQ(Pin(Part(1), {HashNumber(1)})[0], Held::kWritten);
  sessions_.Indexed(std::vector{HashNumber(1)});
  EXPECT_EQ(Pin(Part(1), {HashNumber(1)})[0], Held::kLookUp);
}

TEST_F(SessionsTest, APartPinsAChunkOnceHoweverOftenItNamesIt) {
  Pin(Part(1), {HashNumber(1), HashNumber(1)});
  Pin(Part(1), {HashNumber(1)});
  EXPECT_FALSE(sessions_.MarkDying(std::vector{HashNumber(1)})[0]);
  sessions_.EndPart(Part(1));
  EXPECT_TRUE(sessions_.MarkDying(std::vector{HashNumber(1)})[0]);
}

TEST_F(SessionsTest, TheLastPinForgetsAWrittenChunk) {
  Write(Part(1), Info(1));
  Pin(Part(2), {HashNumber(1)});
  EXPECT_TRUE(sessions_.EndSave(Part(1).save).forgotten.empty());
  const LetGo let_go = sessions_.EndSave(Part(2).save);
  ASSERT_EQ(let_go.forgotten.size(), 1u);
  EXPECT_EQ(let_go.forgotten[0].info.hash, HashNumber(1));
  EXPECT_EQ(Pin(Part(3), {HashNumber(1)})[0], Held::kLookUp);
}

TEST_F(SessionsTest, AWriteThatNobodyWantsAnyMoreIsForgottenAtItsEnd) {
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kLookUp);
  EXPECT_TRUE(sessions_.EndSave(Part(1).save).forgotten.empty());
  EXPECT_EQ(FinishWrite(Part(1), Info(1)).forgotten.size(), 1u);
  EXPECT_EQ(done_, 1);
  EXPECT_TRUE(sessions_.OpenSaves().empty());  // a late end does not bring the save back
}

TEST_F(SessionsTest, PutsOfOneChunkWaitForTheFirst) {
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kLookUp);
  EXPECT_EQ(BeginPut(Part(2), Info(1)), PutStep::kWait);
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kWait);
  FinishWrite(Part(1), Info(1));
  EXPECT_EQ(done_, 3);
  EXPECT_EQ(BeginPut(Part(3), Info(1)), PutStep::kDone);
}

TEST_F(SessionsTest, AFailedPutIsBegunAnew) {
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kLookUp);
  LetGo let_go;
  EXPECT_EQ(sessions_.FinishPut(HashNumber(1), &let_go).size(), 1u);
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kLookUp);
}

TEST_F(SessionsTest, OneNameForTwoLengthsIsRefused) {
  PutDone done = [](const absl::Status&) {};
  EXPECT_EQ(BeginPut(Part(1), Info(1, 100)), PutStep::kLookUp);
  EXPECT_STATUS(sessions_.BeginPut(Part(1), Info(1, 101), &done), absl::StatusCode::kInvalidArgument, "101");
  FinishWrite(Part(1), Info(1, 100));
  EXPECT_STATUS(sessions_.BeginPut(Part(1), Info(1, 101), &done), absl::StatusCode::kInvalidArgument, "101");
  EXPECT_TRUE(done);  // not taken
}

TEST_F(SessionsTest, DyingChunksAreNeitherPinnedNorRead) {
  EXPECT_EQ(sessions_.MarkDying(std::vector{HashNumber(1)}), std::vector<bool>{true});
  EXPECT_EQ(Pin(Part(1), {HashNumber(1)})[0], Held::kDying);
  EXPECT_EQ(sessions_.Pin(std::vector{HashNumber(1)})[0], Held::kDying);
  EXPECT_FALSE(sessions_.PinForRead(HashNumber(1)));
  // It can be written anew, without a look into the index, where the old one still is.
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kWrite);
  FinishWrite(Part(1), Info(1));
  EXPECT_EQ(Pin(Part(2), {HashNumber(1)})[0], Held::kWritten);
  EXPECT_FALSE(sessions_.PinForRead(HashNumber(1)));
  sessions_.EndDying(std::vector{HashNumber(1)});
  EXPECT_TRUE(sessions_.PinForRead(HashNumber(1)));
}

TEST_F(SessionsTest, WhatIsPinnedDoesNotDie) {
  Pin(Part(1), {HashNumber(1)});
  EXPECT_TRUE(sessions_.PinForRead(HashNumber(2)));
  const std::vector<Hash128> hashes = {HashNumber(1), HashNumber(2), HashNumber(3)};
  EXPECT_EQ(sessions_.MarkDying(hashes), (std::vector<bool>{false, false, true}));
  // Kept with a count of 0; the last pin hands it to the reaper, unless a part names it again first.
  EXPECT_TRUE(sessions_.KeepUnreferenced(std::vector{HashNumber(1), HashNumber(2)}).empty());
  EXPECT_EQ(sessions_.Unpin(std::vector{HashNumber(2)}).unreferenced, std::vector{HashNumber(2)});
  sessions_.Referenced(std::vector{HashNumber(1)});
  EXPECT_TRUE(sessions_.EndPart(Part(1)).unreferenced.empty());
  EXPECT_EQ(sessions_.KeepUnreferenced(std::vector{HashNumber(4)}), std::vector{HashNumber(4)});
}

TEST_F(SessionsTest, ForgetUnsyncedSparesWhatIsDurable) {
  Write(Part(1), Info(1), 1, 1);
  Write(Part(1), Info(2), 1, 2);
  Write(Part(1), Info(3), 2, 2);
  const std::vector<WrittenChunk> forgotten = sessions_.ForgetUnsynced(1, 1).forgotten;
  ASSERT_EQ(forgotten.size(), 1u);
  EXPECT_EQ(forgotten[0].info.hash, HashNumber(2));
  const auto written = sessions_.GetWritten(std::vector{HashNumber(1), HashNumber(2), HashNumber(3)});
  EXPECT_TRUE(written[0].has_value());
  EXPECT_FALSE(written[1].has_value());
  EXPECT_TRUE(written[2].has_value());
}

// From the put on until it is in the index or forgotten, whatever its part does.
TEST_F(SessionsTest, ADeltaKeepsItsBasePinned) {
  const std::vector base = {HashNumber(9)};
  ChunkInfo info = Info(1);
  info.codec = CodecId::kDelta;
  const auto put = [&] {
    EXPECT_EQ(sessions_.Pin(base)[0], Held::kLookUp);
    PutDone done = [](const absl::Status&) {};
    EXPECT_EQ(sessions_.BeginPut(Part(1), info, &done, base[0]).value(), PutStep::kLookUp);
    EXPECT_TRUE(sessions_.KeepUnreferenced(base).empty());
  };
  const auto finish_write = [&] {
    LetGo let_go;
    sessions_.FinishWrite(Part(1), {info, {.segment_id = 1, .generation = 1, .offset = 4096}, 1, base[0]},
                          &let_go);
    return let_go;
  };

  put();  // and fails
  LetGo let_go;
  sessions_.FinishPut(info.hash, &let_go);
  EXPECT_EQ(let_go.unreferenced, base);

  put();  // and is indexed
  EXPECT_TRUE(finish_write().unreferenced.empty());
  EXPECT_EQ(sessions_.MarkDying(base), std::vector<bool>{false});
  EXPECT_EQ(sessions_.Indexed(std::vector{info.hash}).unreferenced, base);

  put();  // and is not durable
  finish_write();
  let_go = sessions_.ForgetUnsynced(1, 0);
  EXPECT_EQ(let_go.forgotten.size(), 1u);
  EXPECT_EQ(let_go.unreferenced, base);

  put();  // and its save ends while it is written
  EXPECT_TRUE(sessions_.EndSave(Part(1).save).unreferenced.empty());
  let_go = finish_write();
  EXPECT_EQ(let_go.forgotten.size(), 1u);
  EXPECT_EQ(let_go.unreferenced, base);
  EXPECT_EQ(sessions_.MarkDying(base), std::vector<bool>{true});
}

TEST_F(SessionsTest, ADeltaDoesNotHealADamagedChunk) {
  ChunkInfo info = Info(1);
  sessions_.MarkDamaged(info.hash);
  info.codec = CodecId::kDelta;
  PutDone done = [](const absl::Status&) {};
  EXPECT_STATUS(sessions_.BeginPut(Part(1), info, &done, HashNumber(9)),
                absl::StatusCode::kFailedPrecondition, "only whole");
  info.codec = CodecId::kRaw;
  EXPECT_EQ(BeginPut(Part(1), info), PutStep::kWrite);
}

TEST_F(SessionsTest, PinnedChunksHaveALimit) {
  Pin(Part(1), {HashNumber(1), HashNumber(2), HashNumber(3), HashNumber(4)});
  EXPECT_STATUS(sessions_.PinForPart(Part(2), std::vector{HashNumber(5), HashNumber(6), HashNumber(7)}),
                absl::StatusCode::kResourceExhausted, "limit is 6");
  Pin(Part(2), {HashNumber(5), HashNumber(6)});
  PutDone done = [](const absl::Status&) {};
  EXPECT_STATUS(sessions_.BeginPut(Part(2), Info(7), &done), absl::StatusCode::kResourceExhausted,
                "limit is 6");
  EXPECT_EQ(BeginPut(Part(2), Info(6)), PutStep::kLookUp);  // pinned already
  sessions_.EndPart(Part(1));
  EXPECT_OK(sessions_.BeginPut(Part(2), Info(7), &done));
}

TEST_F(SessionsTest, AwaitWritesReturnsWhenTheyEnded) {
  EXPECT_EQ(BeginPut(Part(1), Info(1)), PutStep::kLookUp);
  EXPECT_EQ(BeginPut(Part(1), Info(2)), PutStep::kLookUp);
  std::atomic<bool> ended = false;
  std::thread waiter([&] {
    sessions_.AwaitWrites(std::vector{HashNumber(1), HashNumber(2), HashNumber(3)});
    ended = true;
  });
  FinishWrite(Part(1), Info(1));
  EXPECT_FALSE(ended);
  LetGo let_go;
  sessions_.FinishPut(HashNumber(2), &let_go);
  waiter.join();
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace esker::store
