#include "client/admin.h"

#include <string>
#include <vector>

#include "esker/esker.h"
#include "tests/client/fake_server.h"
#include "tests/client/state_builder.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class AdminTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(admin_, AdminClient::Make(server_.address(), 10'000));
    ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_)));
    ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, State()));
    ASSERT_OK(handle.Wait());
  }

  FakeServer server_;
  std::unique_ptr<AdminClient> admin_;
};

TEST_F(AdminTest, GetsTheManifest) {
  ASSERT_OK_AND_ASSIGN(const CheckpointManifest checkpoint, admin_->GetCheckpoint("test", std::nullopt));
  EXPECT_EQ(checkpoint.record.step(), 1u);
  EXPECT_EQ(checkpoint.manifest.parts_size(), 1);
  EXPECT_STATUS(admin_->GetCheckpoint("test", 9), absl::StatusCode::kNotFound, server_.address());
}

TEST_F(AdminTest, ADamagedManifestIsRefused) {
  server_.SetEnvelopeTamper([](Rpc, std::string* envelope) { envelope->back() ^= 1; });
  EXPECT_STATUS(admin_->GetCheckpoint("test", 1), absl::StatusCode::kDataLoss, "run test, step 1: manifest");
}

TEST_F(AdminTest, ListsCheckpointsAndAsksForStatus) {
  ASSERT_OK_AND_ASSIGN(const auto list, admin_->ListCheckpoints("test", true));
  EXPECT_EQ(list.checkpoints_size(), 1);
  ASSERT_OK_AND_ASSIGN(const auto status, admin_->Status());
  EXPECT_EQ(status.server_id(), "fake");
}

TEST_F(AdminTest, VerifyShowsProgressAndCanBeBrokenOff) {
  ASSERT_OK_AND_ASSIGN(const CheckpointManifest checkpoint, admin_->GetCheckpoint("test", 1));
  uint64_t seen = 0;
  ASSERT_OK(admin_->VerifyParts(checkpoint.record, {}, [&](const v1::VerifyPartsProgress& progress) {
    EXPECT_EQ(progress.chunks_done(), ++seen);
    return true;
  }));
  EXPECT_EQ(seen, 3u);
}

TEST_F(AdminTest, BadRunNamesDoNotLeave) {
  EXPECT_STATUS(admin_->ListCheckpoints("../x", false), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(admin_->DeleteCheckpoint("", 1, false), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(admin_->PinCheckpoint("A", 1, true, ""), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(admin_->SetRetention("A", std::nullopt), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(admin_->CollectGarbage("A", std::nullopt, true), absl::StatusCode::kInvalidArgument,
                "run name");
}

TEST_F(AdminTest, CallsThatTheServerDoesNotKnowSaySo) {
  EXPECT_STATUS(admin_->ListRuns(), absl::StatusCode::kUnimplemented, "eskerd of this version");
}

}  // namespace
}  // namespace esker::testing
