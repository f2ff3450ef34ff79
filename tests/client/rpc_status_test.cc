#include "client/rpc_status.h"

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(FromGrpc, KeepsCodeAndMessageAndSaysWhere) {
  EXPECT_OK(FromGrpc(grpc::Status::OK, "host:1", "BeginSave"));
  EXPECT_STATUS(FromGrpc({grpc::StatusCode::ALREADY_EXISTS, "step 3 is committed"}, "host:1", "BeginSave"),
                absl::StatusCode::kAlreadyExists, "server host:1: BeginSave: step 3 is committed");
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status = FromGrpc({static_cast<grpc::StatusCode>(code), "m"}, "host:1", "Call");
    EXPECT_EQ(static_cast<int>(status.code()), code);
    EXPECT_STATUS(status, status.code(), "host:1");
  }
}

TEST(FromGrpc, SaysWhatToCheck) {
  EXPECT_STATUS(FromGrpc({grpc::StatusCode::UNAVAILABLE, "refused"}, "host:1", "C"),
                absl::StatusCode::kUnavailable, "refused (is eskerd running there");
  EXPECT_STATUS(FromGrpc({grpc::StatusCode::UNIMPLEMENTED, ""}, "host:1", "C"),
                absl::StatusCode::kUnimplemented, "eskerd of this version");
}

TEST(RetryOf, TellsRefusalsFromTrouble) {
  EXPECT_EQ(RetryOf(absl::UnavailableError("")), Retry::kAlways);
  EXPECT_EQ(RetryOf(absl::DeadlineExceededError("")), Retry::kAlways);
  EXPECT_EQ(RetryOf(absl::InternalError("")), Retry::kFewTimes);
  EXPECT_EQ(RetryOf(absl::DataLossError("")), Retry::kFewTimes);
  EXPECT_EQ(RetryOf(absl::PermissionDeniedError("")), Retry::kNever);
  EXPECT_EQ(RetryOf(absl::ResourceExhaustedError("")), Retry::kNever);
  EXPECT_EQ(RetryOf(absl::AbortedError("")), Retry::kNever);
  EXPECT_EQ(RetryOf(absl::NotFoundError("")), Retry::kNever);
}

}  // namespace
}  // namespace esker::testing
