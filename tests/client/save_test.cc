// Saving, as seen through Checkpointer, with a server that behaves or refuses.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "esker/esker.h"
#include "tests/client/fake_server.h"
#include "tests/client/state_builder.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

std::unique_ptr<Checkpointer> Open(const CheckpointerOptions& options) {
  absl::StatusOr<std::unique_ptr<Checkpointer>> checkpointer = Checkpointer::Open(options);
  EXPECT_OK(checkpointer);
  return *std::move(checkpointer);
}

absl::Status SaveAndWait(Checkpointer* checkpointer, uint64_t step, const State& state) {
  const absl::StatusOr<SaveHandle> handle = checkpointer->Save(step, state);
  return handle.ok() ? handle->Wait() : handle.status();
}

TEST(Save, EveryElementTypeComesBack) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  for (int number = 1; number <= static_cast<int>(ElementType::kC128); ++number) {
    const auto type = static_cast<ElementType>(number);
    const std::string name(ElementTypeName(type));
    builder.Add(WholeTensor(name, type, {33, 77}));
    builder.Add(WholeTensor(name + "/scalar", type, {}));
    builder.Add(WholeTensor(name + "/empty", type, {0, 3}));
  }
  builder.AddItem("rng", std::string(9000, 'r'));
  builder.AddItem("nothing", "");
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));

  std::vector<Room> rooms;
  for (const SourceTensor& tensor : builder.state().tensors) rooms.emplace_back(tensor.box);
  std::vector<TargetTensor> targets;
  for (Room& room : rooms) targets.push_back(room.target());
  ASSERT_OK_AND_ASSIGN(const uint64_t step, checkpointer->Restore(std::nullopt, targets));
  EXPECT_EQ(step, 1u);
  for (size_t i = 0; i < rooms.size(); ++i) EXPECT_EQ(rooms[i].data, builder.data(i)) << rooms[i].box.name;
  ASSERT_OK_AND_ASSIGN(const auto reader, checkpointer->OpenCheckpoint(1));
  ASSERT_OK_AND_ASSIGN(std::string item, reader->ReadItem(0, "rng"));
  EXPECT_EQ(item, std::string(9000, 'r'));
  ASSERT_OK_AND_ASSIGN(item, reader->ReadItem(0, "nothing"));
  EXPECT_EQ(item, "");
}

TEST(Save, TheCallerMayChangeItsTensorsAtOnce) {
  FakeServer server;
  server.Stall(Rpc::kBeginSave);
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(1);
  std::vector<uint8_t>& data = builder.Add(WholeTensor("w", ElementType::kU8, {100'000}));
  const std::vector<uint8_t> before = data;
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, builder.state()));
  builder.Refill(&data);
  EXPECT_FALSE(handle.Done());
  EXPECT_STATUS(handle.Result(), absl::StatusCode::kUnavailable, "under way");
  EXPECT_STATUS(handle.WaitFor(1), absl::StatusCode::kDeadlineExceeded, "under way");
  server.Unstall();
  ASSERT_OK(handle.Wait());
  EXPECT_TRUE(handle.Done());
  EXPECT_OK(handle.Result());
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {room.target()}));
  EXPECT_EQ(room.data, before);
}

TEST(Save, AnEmptyStateIsACheckpointToo) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 0, State()));
  ASSERT_OK_AND_ASSIGN(const auto latest, checkpointer->LatestStep());
  EXPECT_EQ(latest, 0u);
}

TEST(Save, WhatTheServerHoldsIsNotSentAgain) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  std::vector<uint8_t>& changing = builder.Add(WholeTensor("a", ElementType::kF32, {8192}));
  builder.Add(WholeTensor("frozen", ElementType::kF32, {100'000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  EXPECT_EQ(server.PutHashes().size(), 8u + 98u);
  EXPECT_EQ(server.LayoutsReceived(), 1u);
  server.ForgetCounts();
  ASSERT_OK_AND_ASSIGN(const SaveHandle second, checkpointer->Save(2, builder.state()));
  ASSERT_OK(second.Wait());
  EXPECT_EQ(server.PutHashes().size(), 0u);
  EXPECT_EQ(server.LayoutsReceived(), 0u);
  EXPECT_EQ(second.Progress().sent_bytes, 0u);
  EXPECT_EQ(second.Progress().deduplicated_bytes, second.Progress().raw_bytes);
  builder.Refill(&changing);
  ASSERT_OK_AND_ASSIGN(const SaveHandle third, checkpointer->Save(3, builder.state()));
  ASSERT_OK(third.Wait());
  EXPECT_EQ(server.PutHashes().size(), 8u);
  EXPECT_EQ(third.Progress().sent_bytes, 8192u * 4);
}

TEST(Save, WhatThisRanksSaveBeforeHadIsUnchanged) {
  FakeServer server;
  std::vector<std::unique_ptr<Checkpointer>> ranks;
  for (uint32_t rank = 0; rank < 2; ++rank) ranks.push_back(Open(TestOptions(server, rank, 2)));
  StateBuilder builder(TestSeed());
  std::vector<uint8_t>& changing = builder.Add(WholeTensor("a", ElementType::kF32, {8192}));
  builder.Add(WholeTensor("frozen", ElementType::kF32, {100'000}));
  const auto unchanged_after = [&](uint64_t step) {
    std::vector<SaveHandle> handles;
    for (const auto& rank : ranks) handles.push_back(*rank->Save(step, builder.state()));
    for (const SaveHandle& handle : handles) EXPECT_OK(handle.Wait());
    EXPECT_EQ(handles[0].Progress().unchanged_bytes, handles[1].Progress().unchanged_bytes);
    return handles[0].Progress().unchanged_bytes;
  };
  EXPECT_EQ(unchanged_after(1), 0u) << "what another rank has saved does not count";
  EXPECT_EQ(unchanged_after(2), 108'192u * 4);
  builder.Refill(&changing);
  EXPECT_EQ(unchanged_after(3), 100'000u * 4);
}

TEST(Save, AChunkThatThePartHasTwiceIsSentOnce) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(1);
  builder.Add(WholeTensor("zeros", ElementType::kU8, {4096 * 50}), std::vector<uint8_t>(4096 * 50, 0));
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, builder.state()));
  ASSERT_OK(handle.Wait());
  EXPECT_EQ(server.PutHashes().size(), 1u);
  EXPECT_EQ(handle.Progress().processed_bytes, 4096u * 50);
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {room.target()}));
  EXPECT_EQ(room.data, builder.data(0));
  EXPECT_EQ(server.WantedHashes().size(), 1u);
}

TEST(Save, ProgressCountsWhatHappened) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {50'000}));
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(9, builder.state()));
  EXPECT_EQ(handle.step(), 9u);
  ASSERT_OK(handle.Wait());
  const SaveProgress progress = handle.Progress();
  EXPECT_EQ(progress.phase, SaveProgress::Phase::kCommitted);
  EXPECT_EQ(progress.raw_bytes, 50'000u);
  EXPECT_EQ(progress.processed_bytes, 50'000u);
  EXPECT_EQ(progress.sent_bytes, 50'000u);
  EXPECT_EQ(progress.deduplicated_bytes, 0u);
}

TEST(Save, ACodecIsUsedWhereItHelps) {
  for (const auto& [compression, codec] :
       {std::pair{Compression::kZstd, CodecId::kZstd}, std::pair{Compression::kPlanes, CodecId::kPlanes}}) {
    FakeServer server;
    CheckpointerOptions options = TestOptions(server);
    options.compression = compression;
    const auto checkpointer = Open(options);
    StateBuilder builder(TestSeed());
    builder.Add(WholeTensor("noise", ElementType::kU8, {40'000}));
    std::vector<uint8_t> ramp(400'000);
    for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<uint8_t>(i / 1000);
    builder.Add(WholeTensor("ramp", ElementType::kU8, {ramp.size()}), ramp);
    ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, builder.state()));
    ASSERT_OK(handle.Wait());
    EXPECT_EQ(server.StoredCodecs(), (std::set<CodecId>{CodecId::kRaw, codec}));
    EXPECT_LT(handle.Progress().sent_bytes, 100'000u);
    Room noise(builder.state().tensors[0].box);
    Room smooth(builder.state().tensors[1].box);
    ASSERT_OK(checkpointer->Restore(1, {noise.target(), smooth.target()}));
    EXPECT_EQ(noise.data, builder.data(0));
    EXPECT_EQ(smooth.data, ramp);
  }
}

// A state of random floats, of which each save changes every fourth one's lowest bit.
class DeltaSave : public ::testing::Test {
 protected:
  DeltaSave() {
    CheckpointerOptions options = TestOptions(server_);
    options.compression = Compression::kDelta;
    checkpointer_ = Open(options);
    tensor_ = &builder_.Add(WholeTensor("w", ElementType::kF32, {50'000}));
  }
  void Change() {
    for (size_t i = 0; i < tensor_->size(); i += 16) (*tensor_)[i] ^= 1;
  }
  // Whatever becomes of it.
  SaveHandle Save(uint64_t step) {
    absl::StatusOr<SaveHandle> handle = checkpointer_->Save(step, builder_.state());
    EXPECT_OK(handle);
    static_cast<void>(handle->Wait());
    return *handle;
  }

  static constexpr uint64_t kBytes = 200'000;
  FakeServer server_;
  std::unique_ptr<Checkpointer> checkpointer_;
  StateBuilder builder_{TestSeed()};
  std::vector<uint8_t>* tensor_;
};

TEST_F(DeltaSave, SendsWhatHasChanged) {
  const SaveHandle first = Save(1);
  ASSERT_OK(first.Result());
  EXPECT_EQ(first.Progress().sent_bytes, kBytes);
  EXPECT_FALSE(server_.StoredCodecs().contains(CodecId::kDelta));
  Change();
  const SaveHandle second = Save(2);
  ASSERT_OK(second.Result());
  EXPECT_LT(second.Progress().sent_bytes, kBytes / 5);
  EXPECT_EQ(second.Progress().processed_bytes, kBytes);
  EXPECT_TRUE(server_.StoredCodecs().contains(CodecId::kDelta));
  EXPECT_EQ(server_.DamagedPuts(), 0u);
}

TEST_F(DeltaSave, SendsWholeWhoseBaseTheServerHasLost) {
  ASSERT_OK(Save(1).Result());
  const std::vector<Hash128> bases = server_.PutHashes();
  for (size_t i = 0; i < bases.size(); i += 2) server_.LoseChunk(bases[i]);
  Change();
  const SaveHandle second = Save(2);
  ASSERT_OK(second.Result());
  EXPECT_EQ(server_.PutHashes().size(), 2 * bases.size());
  EXPECT_GT(second.Progress().sent_bytes, kBytes / 2);
  EXPECT_EQ(second.Progress().processed_bytes, kBytes);
  EXPECT_EQ(server_.DamagedPuts(), 0u);
}

TEST_F(DeltaSave, HasANewBaseOnceTheServerHasLostTheOldOne) {
  ASSERT_OK(Save(1).Result());
  server_.LoseEverything();
  Change();
  const SaveHandle second = Save(2);
  ASSERT_OK(second.Result());
  EXPECT_GE(second.Progress().sent_bytes, kBytes);
  for (uint64_t step = 3; step <= 6; ++step) {
    Change();
    const SaveHandle later = Save(step);
    ASSERT_OK(later.Result());
    EXPECT_LT(later.Progress().sent_bytes, kBytes / 5) << "step " << step;
  }
}

TEST_F(DeltaSave, FailsIfTheServerTakesItInNoWay) {
  ASSERT_OK(Save(1).Result());
  Change();
  server_.SetHook([&](Rpc rpc, When) {
    return rpc == Rpc::kPutChunk ? absl::FailedPreconditionError("not this either") : absl::OkStatus();
  });
  EXPECT_STATUS(Save(2).Result(), absl::StatusCode::kFailedPrecondition, "not this either");
  // And the next one has the base that the failed one had.
  server_.SetHook(nullptr);
  const SaveHandle third = Save(3);
  ASSERT_OK(third.Result());
  EXPECT_LT(third.Progress().sent_bytes, kBytes / 5);
}

TEST(Save, ASmallWindowIsEnough) {
  FakeServer server;
  CheckpointerOptions options = TestOptions(server);
  options.pipeline_bytes = 1;
  options.threads = 4;
  const auto checkpointer = Open(options);
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {300'000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
}

TEST(Save, AStreamThatTheServerEndsIsFollowedByAnother) {
  FakeServer server;
  server.SetPutsPerStream(3);
  CheckpointerOptions options = TestOptions(server);
  options.pipeline_bytes = 1;  // each chunk waits for the acknowledgement of the one before
  const auto checkpointer = Open(options);
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {60'000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  EXPECT_GE(server.PutHashes().size(), 15u);
}

TEST(Save, LargeChunksGoInSeveralMessages) {
  FakeServer server;
  CheckpointerOptions options = TestOptions(server);
  options.chunk_bytes = 4 << 20;
  const auto checkpointer = Open(options);
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {(uint64_t{9} << 20) + 5}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  EXPECT_EQ(server.PutHashes().size(), 3u);
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {room.target()}));
  EXPECT_EQ(room.data, builder.data(0));
}

TEST(Save, IsVisibleOnlyWithTheLastRank) {
  FakeServer server;
  std::vector<std::unique_ptr<Checkpointer>> ranks;
  for (uint32_t rank = 0; rank < 3; ++rank) ranks.push_back(Open(TestOptions(server, rank, 3)));
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {10'000}));
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, ranks[0]->Save(5, builder.state()));
  ASSERT_OK_AND_ASSIGN(const SaveHandle second, ranks[1]->Save(5, builder.state()));
  server.AwaitCalls(Rpc::kWaitSave, 2);
  EXPECT_EQ(first.Progress().phase, SaveProgress::Phase::kSealed);
  EXPECT_FALSE(server.IsCommitted("test", 5));
  ASSERT_OK_AND_ASSIGN(const auto latest, ranks[2]->LatestStep());
  EXPECT_EQ(latest, std::nullopt);
  ASSERT_OK_AND_ASSIGN(const SaveHandle third, ranks[2]->Save(5, builder.state()));
  EXPECT_OK(third.Wait());
  EXPECT_OK(first.Wait());
  EXPECT_OK(second.Wait());
  EXPECT_TRUE(server.IsCommitted("test", 5));
}

TEST(Save, ManyRanksInOneProcess) {
  FakeServer server;
  constexpr uint32_t kRanks = 24;
  std::vector<std::unique_ptr<Checkpointer>> ranks;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    CheckpointerOptions options = TestOptions(server, rank, kRanks);
    options.threads = 1;
    ranks.push_back(Open(options));
  }
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {1000}));
  for (uint64_t step = 1; step <= 3; ++step) {
    std::vector<SaveHandle> handles;
    for (const auto& rank : ranks) {
      ASSERT_OK_AND_ASSIGN(const SaveHandle handle, rank->Save(step, builder.state()));
      handles.push_back(handle);
    }
    for (const SaveHandle& handle : handles) ASSERT_OK(handle.Wait());
  }
}

TEST(Save, ARankThatNeverComesIsNamed) {
  FakeServer server;
  CheckpointerOptions options = TestOptions(server, 0, 3);
  options.save_timeout_ms = 300;
  const auto checkpointer = Open(options);
  const absl::Status status = SaveAndWait(checkpointer.get(), 5, State());
  EXPECT_STATUS(status, absl::StatusCode::kDeadlineExceeded, "1 of 3 ranks");
  EXPECT_STATUS(status, absl::StatusCode::kDeadlineExceeded, "missing: 1, 2");
  EXPECT_STATUS(status, absl::StatusCode::kDeadlineExceeded, "run test, step 5, rank 0");
  EXPECT_THAT(server.AbortReason("test", 5), ::testing::HasSubstr("rank 0"));
}

TEST(Save, AnAbortReachesTheOtherRanks) {
  FakeServer server;
  const auto one = Open(TestOptions(server, 0, 2));
  const auto two = Open(TestOptions(server, 1, 2));
  ASSERT_OK_AND_ASSIGN(const SaveHandle waiting, one->Save(5, State()));
  server.AwaitCalls(Rpc::kWaitSave, 1);
  server.SetHook([](Rpc rpc, When) {
    return rpc == Rpc::kSealPart ? absl::ResourceExhaustedError("disk full: 3 of 900 bytes")
                                 : absl::OkStatus();
  });
  EXPECT_STATUS(SaveAndWait(two.get(), 5, State()), absl::StatusCode::kResourceExhausted, "disk full");
  EXPECT_STATUS(waiting.Wait(), absl::StatusCode::kAborted, "disk full: 3 of 900 bytes");
}

TEST(Save, RefusalsEndTheSaveAtOnceAndTheNextOneWorks) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {30'000}));
  uint64_t step = 0;
  for (const Rpc where :
       {Rpc::kBeginSave, Rpc::kOfferChunks, Rpc::kPutChunk, Rpc::kSealPart, Rpc::kReportPart}) {
    server.ForgetCounts();
    server.SetHook([where](Rpc rpc, When) {
      return rpc == where ? absl::InvalidArgumentError("refused as told") : absl::OkStatus();
    });
    builder.Refill(const_cast<std::vector<uint8_t>*>(&builder.data(0)));
    EXPECT_STATUS(SaveAndWait(checkpointer.get(), ++step, builder.state()),
                  absl::StatusCode::kInvalidArgument, "refused as told");
    EXPECT_EQ(server.Calls(Rpc::kBeginSave), 1u);
    server.SetHook(nullptr);
    EXPECT_OK(SaveAndWait(checkpointer.get(), ++step, builder.state()));
  }
}

TEST(Save, ServerTroubleIsTriedAFewTimes) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  std::atomic<int> left = 2;
  server.SetHook([&](Rpc rpc, When when) {
    return rpc == Rpc::kSealPart && when == When::kBefore && left-- > 0 ? absl::InternalError("fsync failed")
                                                                        : absl::OkStatus();
  });
  EXPECT_OK(SaveAndWait(checkpointer.get(), 1, State()));
  left = 1'000;
  EXPECT_STATUS(SaveAndWait(checkpointer.get(), 2, State()), absl::StatusCode::kInternal, "fsync failed");
  EXPECT_GT(left, 990);
}

TEST(Save, ChunksThatTheServerLostAreSentAgain) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {40'000}));
  std::atomic<int> seals = 0;
  server.SetHook([&](Rpc rpc, When when) {
    // As after a failed fdatasync.
    if (rpc == Rpc::kSealPart && when == When::kBefore && seals++ == 0) server.LosePending();
    return absl::OkStatus();
  });
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  EXPECT_EQ(seals, 2);
  EXPECT_EQ(server.PutHashes().size(), 20u);
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {room.target()}));
  EXPECT_EQ(room.data, builder.data(0));
}

TEST(Save, AnotherServersDiskGetsTheLayoutAgain) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {4000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  server.LoseEverything();
  ASSERT_OK(SaveAndWait(checkpointer.get(), 2, builder.state()));
  EXPECT_EQ(server.LayoutsReceived(), 2u);
}

TEST(Save, AStepIsSavedOnceAnAttempt) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 3, State()));
  EXPECT_STATUS(SaveAndWait(checkpointer.get(), 3, State()), absl::StatusCode::kAlreadyExists, "step 3");
  EXPECT_STATUS(checkpointer->Save(static_cast<uint64_t>(-1), State()), absl::StatusCode::kInvalidArgument,
                "step");
}

TEST(Save, AZombieIsFenced) {
  FakeServer server;
  const auto zombie = Open(TestOptions(server));
  CheckpointerOptions options = TestOptions(server);
  options.incarnation = "second";
  const auto live = Open(options);
  EXPECT_EQ(zombie->attempt(), 1u);
  EXPECT_EQ(live->attempt(), 2u);
  EXPECT_STATUS(SaveAndWait(zombie.get(), 1, State()), absl::StatusCode::kPermissionDenied, "attempt 1");
  EXPECT_STATUS(Checkpointer::Open(TestOptions(server)), absl::StatusCode::kPermissionDenied,
                "newer incarnation");
  EXPECT_OK(SaveAndWait(live.get(), 1, State()));
  EXPECT_EQ(server.Calls(Rpc::kAbortSave), 0u);
}

TEST(Save, AZombieIsFencedInTheMiddle) {
  FakeServer server;
  const auto zombie = Open(TestOptions(server));
  server.Stall(Rpc::kSealPart);
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, zombie->Save(1, State()));
  server.AwaitCalls(Rpc::kSealPart, 1);
  CheckpointerOptions options = TestOptions(server);
  options.incarnation = "second";
  const auto live = Open(options);
  server.Unstall();
  EXPECT_STATUS(handle.Wait(), absl::StatusCode::kPermissionDenied, "attempt 1");
}

TEST(SavePolicy, WaitBlocksUntilTheOneBeforeHasEnded) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  server.Stall(Rpc::kReportPart);
  ASSERT_OK_AND_ASSIGN(const SaveHandle first, checkpointer->Save(1, State()));
  server.AwaitCalls(Rpc::kReportPart, 1);
  std::atomic<bool> returned = false;
  std::thread saves([&] {
    EXPECT_OK(SaveAndWait(checkpointer.get(), 2, State()));
    returned = true;
  });
  EXPECT_FALSE(first.Done());
  EXPECT_FALSE(returned);
  server.Unstall();
  saves.join();
  EXPECT_TRUE(first.Done());
  EXPECT_OK(first.Result());
}

TEST(SavePolicy, SkipAndFailSaveNothing) {
  for (const InFlightPolicy policy : {InFlightPolicy::kSkip, InFlightPolicy::kFail}) {
    FakeServer server;
    CheckpointerOptions options = TestOptions(server);
    options.in_flight = policy;
    const auto checkpointer = Open(options);
    server.Stall(Rpc::kReportPart);
    ASSERT_OK_AND_ASSIGN(const SaveHandle first, checkpointer->Save(1, State()));
    ASSERT_OK_AND_ASSIGN(const SaveHandle second, checkpointer->Save(2, State()));
    EXPECT_TRUE(second.Done());
    EXPECT_EQ(second.Progress().phase, SaveProgress::Phase::kFailed);
    EXPECT_STATUS(second.Wait(),
                  policy == InFlightPolicy::kSkip ? absl::StatusCode::kCancelled
                                                  : absl::StatusCode::kFailedPrecondition,
                  "the save of step 1 is still under way");
    server.Unstall();
    EXPECT_OK(first.Wait());
    EXPECT_OK(SaveAndWait(checkpointer.get(), 3, State()));
    EXPECT_FALSE(server.IsCommitted("test", 2));
  }
}

TEST(Save, AWrongStateSavesNothing) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  State state;
  state.tensors.push_back({WholeTensor("w", ElementType::kU8, {5}), nullptr});
  EXPECT_STATUS(checkpointer->Save(1, state), absl::StatusCode::kInvalidArgument, "\"w\"");
  EXPECT_EQ(server.Calls(Rpc::kBeginSave), 0u);
  EXPECT_OK(SaveAndWait(checkpointer.get(), 1, State()));
}

TEST(Save, TheDestructorWaitsForTheSaveUnderWay) {
  FakeServer server;
  auto checkpointer = Open(TestOptions(server));
  server.Stall(Rpc::kReportPart);
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {50'000}));
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, builder.state()));
  server.AwaitCalls(Rpc::kReportPart, 1);
  std::thread unstalls([&] { server.Unstall(); });
  checkpointer.reset();
  unstalls.join();
  EXPECT_TRUE(handle.Done());
  EXPECT_OK(handle.Wait());
}

TEST(Save, IsRefusedInAForkedProcess) {
  FakeServer server;
  auto checkpointer = Open(TestOptions(server));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool refused = absl::IsFailedPrecondition(checkpointer->Save(1, State()).status());
    checkpointer.reset();  // must not wait for threads that are not here
    ::_exit(refused ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_OK(SaveAndWait(checkpointer.get(), 1, State()));
}

TEST(Save, ManyThreadsMayUseOneCheckpointer) {
  FakeServer server;
  const auto checkpointer = Open(TestOptions(server));
  StateBuilder builder(TestSeed());
  builder.Add(WholeTensor("w", ElementType::kU8, {20'000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 0, builder.state()));
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 5; ++i) {
        EXPECT_OK(SaveAndWait(checkpointer.get(), 1 + t * 100 + i, builder.state()));
        Room room(builder.state().tensors[0].box);
        EXPECT_OK(checkpointer->Restore(std::nullopt, {room.target()}));
        EXPECT_EQ(room.data, builder.data(0));
        EXPECT_OK(checkpointer->List());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Open, OptionsAreChecked) {
  FakeServer server;
  const auto error = [&](const std::function<void(CheckpointerOptions*)>& change) {
    CheckpointerOptions options = TestOptions(server);
    change(&options);
    return Checkpointer::Open(options).status();
  };
  EXPECT_STATUS(error([](auto* o) { o->run = "../x"; }), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(error([](auto* o) { o->rank = 1; }), absl::StatusCode::kInvalidArgument, "rank 1");
  EXPECT_STATUS(error([](auto* o) { o->chunk_bytes = 5000; }), absl::StatusCode::kInvalidArgument,
                "chunk_bytes 5000");
  EXPECT_STATUS(error([](auto* o) { o->chunk_bytes = 8 << 20; }), absl::StatusCode::kInvalidArgument,
                "chunk_bytes");
  EXPECT_STATUS(error([](auto* o) { o->chunk_bytes = 0; }), absl::StatusCode::kInvalidArgument,
                "chunk_bytes");
  EXPECT_STATUS(error([](auto* o) {
                  o->compression = Compression::kDelta;
                  o->keep_staging = false;
                }),
                absl::StatusCode::kInvalidArgument, "expected keep_staging");
  EXPECT_STATUS(error([](auto* o) { o->threads = -1; }), absl::StatusCode::kInvalidArgument, "threads");
  EXPECT_STATUS(error([](auto* o) { o->server = "nowhere"; }), absl::StatusCode::kInvalidArgument,
                "host:port");
  EXPECT_STATUS(error([](auto* o) { o->incarnation = "\n"; }), absl::StatusCode::kInvalidArgument,
                "incarnation");
  EXPECT_STATUS(error([](auto* o) { o->staging_bytes = uint64_t{1} << 55; }),
                absl::StatusCode::kResourceExhausted, "staging memory");
}

TEST(Open, StagingMemoryIsReadyForTheFirstSave) {
  FakeServer server;
  CheckpointerOptions options = TestOptions(server);
  options.staging_bytes = 8 << 20;
  const auto checkpointer = Open(options);
  EXPECT_EQ(checkpointer->options().staging_bytes, 8u << 20);
  StateBuilder builder(1);
  builder.Add(WholeTensor("w", ElementType::kU8, {5'000'000}));
  ASSERT_OK(SaveAndWait(checkpointer.get(), 1, builder.state()));
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {room.target()}));
  EXPECT_EQ(room.data, builder.data(0));
}

}  // namespace
}  // namespace esker::testing
