#include "server/rpc/grpc_status.h"

#include <gtest/gtest.h>

namespace esker {
namespace {

TEST(GrpcStatus, KeepsCodeAndMessage) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status = ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
  }
}

TEST(GrpcStatus, KeepsBothEndsOfALongMessage) {
  const std::string text = "begin" + std::string(10'000, 'x') + "end";
  const std::string message = ToGrpcStatus(absl::InternalError(text)).error_message();
  EXPECT_LE(message.size(), kMaxStatusMessageBytes);
  EXPECT_TRUE(message.starts_with("begin"));
  EXPECT_TRUE(message.ends_with("end"));
}

}  // namespace
}  // namespace esker
