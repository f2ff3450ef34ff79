// Saving through crashes, restarts and stalls of the server.
#include <atomic>
#include <ostream>
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

struct CrashPoint {
  const char* name;
  Rpc rpc;
  When when;
  int call;  // the how manieth
};

void PrintTo(const CrashPoint& point, std::ostream* out) { *out << point.name; }

// 150 chunks of rank 0, and a rank 1 that is sealed before.
class SaveRestart : public ::testing::TestWithParam<CrashPoint> {
 protected:
  SaveRestart() : builder_(TestSeed()) { builder_.Add(WholeTensor("w", ElementType::kF32, {150'000})); }

  void ExpectRestores(Checkpointer* checkpointer, uint64_t step) {
    Room room(builder_.state().tensors[0].box);
    ASSERT_OK(checkpointer->Restore(step, {room.target()}));
    EXPECT_EQ(room.data, builder_.data(0));
  }

  FakeServer server_;
  StateBuilder builder_;
};

TEST_P(SaveRestart, IsSurvived) {
  const CrashPoint point = GetParam();
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_)));
  std::atomic<int> calls = 0;
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == point.rpc && when == point.when && ++calls == point.call) server_.Crash();
    return absl::OkStatus();
  });
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(4, builder_.state()));
  ASSERT_OK(handle.Wait());
  EXPECT_GE(calls, point.call);
  EXPECT_TRUE(server_.IsCommitted("test", 4));
  EXPECT_EQ(handle.Progress().processed_bytes, handle.Progress().raw_bytes);
  EXPECT_EQ(handle.Progress().deduplicated_bytes, 0u);
  ExpectRestores(checkpointer.get(), 4);
}

INSTANTIATE_TEST_SUITE_P(Points, SaveRestart,
                         ::testing::Values(CrashPoint{"BeforeBegin", Rpc::kBeginSave, When::kBefore, 1},
                                           CrashPoint{"AfterBegin", Rpc::kBeginSave, When::kAfter, 1},
                                           CrashPoint{"BeforeOffer", Rpc::kOfferChunks, When::kBefore, 1},
                                           CrashPoint{"AfterOffer", Rpc::kOfferChunks, When::kAfter, 1},
                                           CrashPoint{"BeforeFirstPut", Rpc::kPutChunk, When::kBefore, 1},
                                           CrashPoint{"AfterFirstPut", Rpc::kPutChunk, When::kAfter, 1},
                                           CrashPoint{"After70Puts", Rpc::kPutChunk, When::kAfter, 70},
                                           CrashPoint{"AfterLastPut", Rpc::kPutChunk, When::kAfter, 147},
                                           CrashPoint{"BeforeSeal", Rpc::kSealPart, When::kBefore, 1},
                                           CrashPoint{"AfterSeal", Rpc::kSealPart, When::kAfter, 1},
                                           CrashPoint{"BeforeReport", Rpc::kReportPart, When::kBefore, 1},
                                           CrashPoint{"AfterCommit", Rpc::kReportPart, When::kAfter, 1}),
                         [](const auto& info) { return info.param.name; });

TEST_F(SaveRestart, AfterAReportBeforeTheCommit) {
  ASSERT_OK_AND_ASSIGN(const auto first, Checkpointer::Open(TestOptions(server_, 0, 2)));
  ASSERT_OK_AND_ASSIGN(const auto second, Checkpointer::Open(TestOptions(server_, 1, 2)));
  ASSERT_OK_AND_ASSIGN(const SaveHandle one, first->Save(4, builder_.state()));
  server_.AwaitCalls(Rpc::kWaitSave, 1);
  server_.Crash();  // forgets the report
  ASSERT_OK_AND_ASSIGN(const SaveHandle two, second->Save(4, State()));
  EXPECT_OK(one.Wait());
  EXPECT_OK(two.Wait());
  EXPECT_GE(server_.Calls(Rpc::kReportPart), 3u);
}

TEST_F(SaveRestart, AForgottenReportIsRepeatedWithoutALostConnection) {
  ASSERT_OK_AND_ASSIGN(const auto first, Checkpointer::Open(TestOptions(server_, 0, 2)));
  ASSERT_OK_AND_ASSIGN(const auto second, Checkpointer::Open(TestOptions(server_, 1, 2)));
  // The answer to the first WaitSave says that the rank has not reported.
  std::atomic<bool> forgot = false;
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == Rpc::kWaitSave && when == When::kBefore && !forgot.exchange(true)) server_.ForgetReports();
    return absl::OkStatus();
  });
  ASSERT_OK_AND_ASSIGN(const SaveHandle one, first->Save(4, State()));
  server_.AwaitCalls(Rpc::kReportPart, 2);
  ASSERT_OK_AND_ASSIGN(const SaveHandle two, second->Save(4, State()));
  EXPECT_OK(one.Wait());
  EXPECT_OK(two.Wait());
}

TEST_F(SaveRestart, OfTheWholeProcess) {
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_)));
  server_.Stall(Rpc::kSealPart);
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(4, builder_.state()));
  server_.AwaitCalls(Rpc::kSealPart, 1);
  server_.Stop();
  EXPECT_FALSE(handle.Done());
  server_.Start();
  ASSERT_OK(handle.Wait());
  ExpectRestores(checkpointer.get(), 4);
}

TEST_F(SaveRestart, WithAnEmptyDiskEndsTheSave) {
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_)));
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == Rpc::kSealPart && when == When::kBefore) server_.LoseEverything();
    return absl::OkStatus();
  });
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(4, builder_.state()));
  EXPECT_STATUS(handle.Wait(), absl::StatusCode::kNotFound, "no save of step 4");
  server_.SetHook(nullptr);
  ASSERT_OK_AND_ASSIGN(const SaveHandle next, checkpointer->Save(5, builder_.state()));
  ASSERT_OK(next.Wait());
  ExpectRestores(checkpointer.get(), 5);
}

TEST_F(SaveRestart, ASaveThatWasAbortedMeanwhileIsNotBegunAnew) {
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_)));
  std::atomic<bool> once = true;
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == Rpc::kPutChunk && when == When::kAfter && once.exchange(false)) {
      server_.AbortSave("test", 4, "expired");
      server_.Crash();
    }
    return absl::OkStatus();
  });
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(4, builder_.state()));
  EXPECT_STATUS(handle.Wait(), absl::StatusCode::kAborted, "expired");
  EXPECT_EQ(server_.Calls(Rpc::kBeginSave), 1u);
}

TEST_F(SaveRestart, AServerThatStaysAwayFailsTheSaveInTime) {
  CheckpointerOptions options = TestOptions(server_);
  options.save_timeout_ms = 500;
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(options));
  server_.Stop();
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(4, builder_.state()));
  EXPECT_STATUS(handle.WaitFor(30'000), absl::StatusCode::kDeadlineExceeded, "not committed within 500 ms");
  EXPECT_STATUS(handle.Result(), absl::StatusCode::kDeadlineExceeded, server_.address());
  EXPECT_EQ(handle.Progress().phase, SaveProgress::Phase::kFailed);
  server_.Start();
  ASSERT_OK_AND_ASSIGN(const SaveHandle next, checkpointer->Save(5, builder_.state()));
  EXPECT_OK(next.Wait());
}

class SaveStall : public ::testing::TestWithParam<Rpc> {};

// Whatever does not answer: the handle fails in time, the next Save does not find the way blocked, and its
// bytes are its own.
TEST_P(SaveStall, FailsInTimeAndTheNextSaveIsWhole) {
  FakeServer server;
  CheckpointerOptions options = TestOptions(server);
  options.chunk_bytes = 1 << 20;
  options.save_timeout_ms = 1'000;
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(options));
  StateBuilder builder(TestSeed());
  std::vector<uint8_t>& data = builder.Add(WholeTensor("w", ElementType::kU8, {24 << 20}));
  server.Stall(GetParam());
  ASSERT_OK_AND_ASSIGN(const SaveHandle stalled, checkpointer->Save(1, builder.state()));
  builder.Refill(&data);
  // Waits for its turn. The stalled save has messages with views of the arena on their way; whatever of them
  // arrives must be as it was.
  absl::StatusOr<SaveHandle> next = absl::UnknownError("");
  std::thread saves([&] { next = checkpointer->Save(2, builder.state()); });
  EXPECT_STATUS(stalled.WaitFor(30'000), absl::StatusCode::kDeadlineExceeded, "step 1");
  server.Unstall();
  saves.join();
  ASSERT_OK(next);
  // The second had the same short time limit, which a slow machine may not keep: then once more.
  absl::Status status = next->Wait();
  for (uint64_t step = 3; !status.ok() && step < 50; ++step) {
    ASSERT_OK_AND_ASSIGN(next, checkpointer->Save(step, builder.state()));
    status = next->Wait();
  }
  ASSERT_OK(status);
  EXPECT_EQ(server.DamagedPuts(), 0u);
  Room room(builder.state().tensors[0].box);
  ASSERT_OK(checkpointer->Restore(std::nullopt, {room.target()}));
  EXPECT_EQ(room.data, data);
}

INSTANTIATE_TEST_SUITE_P(Calls, SaveStall,
                         ::testing::Values(Rpc::kBeginSave, Rpc::kOfferChunks, Rpc::kPutChunk, Rpc::kSealPart,
                                           Rpc::kReportPart),
                         [](const auto& info) {
                           switch (info.param) {
                             case Rpc::kBeginSave:
                               return "BeginSave";
                             case Rpc::kOfferChunks:
                               return "OfferChunks";
                             case Rpc::kPutChunk:
                               return "PutChunk";
                             case Rpc::kSealPart:
                               return "SealPart";
                             default:
                               return "ReportPart";
                           }
                         });

}  // namespace
}  // namespace esker::testing
