// A server at a distance: every call takes longer, and nothing else changes.
#include "tests/integration/delay_relay.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class Distance : public ServerTest, public ::testing::WithParamInterface<int> {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(StartServer());
    const std::string& address = server_->address();
    const int port = std::stoi(address.substr(address.rfind(':') + 1));
    absl::StatusOr<std::unique_ptr<DelayRelay>> relay =
        DelayRelay::Start(port, std::chrono::milliseconds(GetParam()));
    ASSERT_OK(relay.status());
    relay_ = *std::move(relay);
  }

  std::unique_ptr<DelayRelay> relay_;
};

INSTANTIATE_TEST_SUITE_P(Milliseconds, Distance, ::testing::Values(1, 10));

TEST_P(Distance, SavesAndRestoresAreWhole) {
  const std::vector<GlobalTensor> tensors = {{"weights", ElementType::kF32, {64, 100'000}},
                                             {"bias", ElementType::kBF16, {64, 3}}};
  CheckpointerOptions options = JobOptions(relay_->address(), "run", "first");
  options.transport = Transport::kGrpc;
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 2));
  for (uint64_t step = 1; step <= 2; ++step) {
    ASSERT_OK(job->Save(step, MakeJobState(tensors, 2, step)));
    EXPECT_EQ(RestoreDifference(relay_->address(), "run", step, tensors, 3, step), "");
  }
}

}  // namespace
}  // namespace esker::testing
