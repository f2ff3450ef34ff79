#include <condition_variable>
#include <list>

#include "server/rpc/wait_save_call.h"
#include "tests/server/rpc/rpc_fixture.h"

namespace esker::testing {
namespace {

// Many waits at a time, without a thread for each.
class Waits {
 public:
  explicit Waits(v1::Coordinator::Stub* stub) : stub_(stub) {}

  // Counts as started once the request is on its way.
  void Start(const v1::WaitSaveRequest& request) {
    Wait& wait = waits_.emplace_back();
    wait.request = request;
    wait.context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    stub_->async()->WaitSave(&wait.context, &wait.request, &wait.response,
                             [this, &wait](const grpc::Status& status) {
                               MutexLock lock(&mu_);
                               wait.status = FromGrpc(status);
                               ++ended_;
                               changed_.NotifyAll();
                             });
  }
  void CancelAll() {
    for (Wait& wait : waits_) wait.context.TryCancel();
  }
  void AwaitAll() {
    MutexLock lock(&mu_);
    while (ended_ < waits_.size()) changed_.Wait(&mu_);
  }
  size_t ended() {
    MutexLock lock(&mu_);
    return ended_;
  }

  struct Wait {
    grpc::ClientContext context;
    v1::WaitSaveRequest request;
    v1::SaveStatus response;
    absl::Status status;
  };
  std::list<Wait>& all() { return waits_; }

 private:
  v1::Coordinator::Stub* const stub_;
  std::list<Wait> waits_;
  Mutex mu_;
  CondVar changed_;
  size_t ended_ ABSL_GUARDED_BY(mu_) = 0;
};

class WaitSaveTest : public RpcTest {
 protected:
  WaitSaveTest() { StartServer(); }

  static v1::WaitSaveRequest WaitFor(const v1::SaveContext& save, uint32_t timeout_ms = 60'000) {
    v1::WaitSaveRequest request;
    *request.mutable_save() = save;
    request.set_timeout_ms(timeout_ms);
    return request;
  }
};

TEST_F(WaitSaveTest, TwoThousandAtATimeAllHearOfTheCommit) {
  const v1::SaveContext save = Begin(1);
  const TestPart part = MakePart(save, 1000, 1);
  Put(save, part);
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, Seal(save, part));
  Waits waits(coordinator_.get());
  for (int i = 0; i < 2000; ++i) waits.Start(WaitFor(save));
  // The server answers others meanwhile.
  ASSERT_OK(Call(&v1::Coordinator::Stub::ListRuns, {}));
  EXPECT_EQ(waits.ended(), 0);
  ASSERT_OK(Report(save, sealed));
  waits.AwaitAll();
  for (const Waits::Wait& wait : waits.all()) {
    ASSERT_OK(wait.status);
    ASSERT_EQ(wait.response.state(), v1::SaveStatus::COMMITTED);
  }
}

TEST_F(WaitSaveTest, AnswersAtItsTimeout) {
  const v1::SaveContext save = Begin(1);
  ASSERT_OK_AND_ASSIGN(const v1::SaveStatus status,
                       Call(&v1::Coordinator::Stub::WaitSave, WaitFor(save, 50)));
  EXPECT_EQ(status.state(), v1::SaveStatus::SAVING);
  EXPECT_EQ(status.missing_ranks_size(), 1);
}

TEST_F(WaitSaveTest, ClientsThatGoAwayAreLetGoAtOnce) {
  const v1::SaveContext save = Begin(1);
  {
    Waits waits(coordinator_.get());
    for (int i = 0; i < 100; ++i) waits.Start(WaitFor(save));
    ASSERT_OK(Call(&v1::Coordinator::Stub::ListRuns, {}));
    waits.CancelAll();
    waits.AwaitAll();
    for (const Waits::Wait& wait : waits.all()) EXPECT_EQ(wait.status.code(), absl::StatusCode::kCancelled);
  }
  // Nothing of the waits that nobody waits for is left to drain.
  const auto begun = std::chrono::steady_clock::now();
  server_->Shutdown(std::chrono::seconds(30));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(20));
}

TEST_F(WaitSaveTest, TheServersStopAnswersThem) {
  const v1::SaveContext save = Begin(1);
  Waits waits(coordinator_.get());
  for (int i = 0; i < 100; ++i) waits.Start(WaitFor(save));
  ASSERT_OK(Call(&v1::Coordinator::Stub::ListRuns, {}));
  const auto begun = std::chrono::steady_clock::now();
  server_->Shutdown(std::chrono::seconds(30));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(20));
  waits.AwaitAll();
  for (const Waits::Wait& wait : waits.all()) EXPECT_EQ(wait.status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace esker::testing
