#include "server/rpc/unary_calls.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <latch>
#include <thread>

#include "format/base/text.h"
#include "format/proto/service.grpc.pb.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

// A service of which one call, ListRuns, waits until the test opens the gate.
class GatedService final : public v1::Coordinator::CallbackService {
 public:
  explicit GatedService(UnaryCalls* calls) : calls_(calls) {}

  grpc::ServerUnaryReactor* ListRuns(grpc::CallbackServerContext* context, const v1::ListRunsRequest* request,
                                     v1::ListRunsResponse* response) override {
    return calls_->Run(context, request, response,
                       [this](const v1::ListRunsRequest&) -> absl::StatusOr<v1::ListRunsResponse> {
                         ++entered_;
                         gate_.wait();
                         return v1::ListRunsResponse();
                       });
  }
  grpc::ServerUnaryReactor* OpenRun(grpc::CallbackServerContext* context, const v1::OpenRunRequest* request,
                                    v1::OpenRunResponse* response) override {
    return calls_->Run(context, request, response,
                       [this](const v1::OpenRunRequest& given) -> absl::StatusOr<v1::OpenRunResponse> {
                         ++executed_;
                         if (given.run() == "bad") return absl::NotFoundError("no such run");
                         v1::OpenRunResponse answer;
                         answer.set_attempt(given.run().size());
                         return answer;
                       });
  }

  void OpenGate() { gate_.count_down(); }
  int entered() const { return entered_; }
  int executed() const { return executed_; }

 private:
  UnaryCalls* const calls_;
  std::latch gate_{1};
  std::atomic<int> entered_{0};
  std::atomic<int> executed_{0};
};

class UnaryCallsTest : public ::testing::Test {
 protected:
  void Start() {
    pool_ = std::make_unique<ThreadPool>(1, "test-call");
    calls_ = std::make_unique<UnaryCalls>(&options_, pool_.get());
    service_ = std::make_unique<GatedService>(calls_.get());
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    channel_ = grpc::CreateChannel(StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
    stub_ = v1::Coordinator::NewStub(channel_);
  }
  void TearDown() override {
    server_->Shutdown();
    server_ = nullptr;
  }

  grpc::Status OpenRun(const std::string& run, v1::OpenRunResponse* response,
                       std::chrono::milliseconds timeout) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    v1::OpenRunRequest request;
    request.set_run(run);
    return stub_->OpenRun(&context, request, response);
  }
  // Occupies the only thread until the gate opens.
  std::future<grpc::Status> BlockTheThread() {
    auto blocked = std::async(std::launch::async, [this] {
      grpc::ClientContext context;
      v1::ListRunsResponse response;
      return stub_->ListRuns(&context, {}, &response);
    });
    while (service_->entered() == 0) std::this_thread::yield();
    return blocked;
  }

  RpcOptions options_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<UnaryCalls> calls_;
  std::unique_ptr<GatedService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
};

constexpr std::chrono::minutes kLong{1};

TEST_F(UnaryCallsTest, AnswersAndErrorsComeThrough) {
  Start();
  v1::OpenRunResponse response;
  EXPECT_TRUE(OpenRun("four", &response, kLong).ok());
  EXPECT_EQ(response.attempt(), 4);
  const grpc::Status status = OpenRun("bad", &response, kLong);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such run");
}

TEST_F(UnaryCallsTest, ACallWhoseDeadlinePassedBeforeItsTurnIsNotExecuted) {
  Start();
  std::future<grpc::Status> blocked = BlockTheThread();
  v1::OpenRunResponse response;
  constexpr std::chrono::milliseconds kShort{50};
  EXPECT_EQ(OpenRun("late", &response, kShort).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // The server counts from the call's arrival, which was before its end here.
  std::this_thread::sleep_for(kShort + std::chrono::milliseconds(20));
  service_->OpenGate();
  EXPECT_TRUE(blocked.get().ok());
  // Its turn has come before this one's.
  EXPECT_TRUE(OpenRun("in time", &response, kLong).ok());
  EXPECT_EQ(service_->executed(), 1);
}

TEST_F(UnaryCallsTest, ACancelledCallIsNotExecuted) {
  Start();
  std::future<grpc::Status> blocked = BlockTheThread();
  grpc::ClientContext context;
  v1::OpenRunRequest request;
  v1::OpenRunResponse response;
  std::promise<grpc::Status> ended;
  stub_->async()->OpenRun(&context, &request, &response,
                          [&](const grpc::Status& status) { ended.set_value(status); });
  context.TryCancel();
  EXPECT_EQ(ended.get_future().get().error_code(), grpc::StatusCode::CANCELLED);
  service_->OpenGate();
  EXPECT_TRUE(blocked.get().ok());
  EXPECT_TRUE(OpenRun("afterwards", &response, kLong).ok());
}

TEST_F(UnaryCallsTest, MoreThanMayWaitAreRefusedAtOnce) {
  options_.max_pending_calls = 1;
  Start();
  std::future<grpc::Status> blocked = BlockTheThread();
  v1::OpenRunResponse response;
  const grpc::Status status = OpenRun("one too many", &response, kLong);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("limits: 1 calls"));
  service_->OpenGate();
  EXPECT_TRUE(blocked.get().ok());
  // What has ended no longer counts; the client may hear of it a moment earlier than the server counts it
  // off.
  while (OpenRun("again", &response, kLong).error_code() == grpc::StatusCode::UNAVAILABLE)
    std::this_thread::yield();
  EXPECT_EQ(service_->executed(), 1);
}

TEST_F(UnaryCallsTest, MoreBytesThanMayWaitAreRefusedAtOnce) {
  options_.max_pending_request_bytes = 1000;
  Start();
  std::future<grpc::Status> blocked = BlockTheThread();
  v1::OpenRunResponse response;
  EXPECT_EQ(OpenRun(std::string(2000, 'x'), &response, kLong).error_code(), grpc::StatusCode::UNAVAILABLE);
  service_->OpenGate();
  EXPECT_TRUE(blocked.get().ok());
  // Alone it is let in.
  while (!OpenRun(std::string(2000, 'x'), &response, kLong).ok()) std::this_thread::yield();
}

}  // namespace
}  // namespace esker
