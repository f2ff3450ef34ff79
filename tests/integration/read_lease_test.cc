// A checkpoint that someone is restoring is not collected, and is so soon afterwards (P5).
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class ReadLease : public ServerTest {
 protected:
  void SetUp() override {
    ServerProcess::Options options;
    options.read_lease_ttl = "2s";
    StartServer(options);
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
    for (uint64_t step = 1; step <= 2; ++step) ASSERT_OK(job->Save(step, MakeJobState(Tensors(), 2, step)));
  }

  static std::vector<GlobalTensor> Tensors() {
    return {{"weights", ElementType::kF32, {32, 256 << 10}}};
  }  // 32 MiB

  std::string RestoreFrom(CheckpointReader& checkpoint, uint64_t seed) {
    RestoreTarget target(RowShards(Tensors(), 0, 1));
    RestoreRequest request;
    request.tensors = target.tensors();
    const absl::Status restored = checkpoint.Restore(request);
    return restored.ok() ? target.Difference(seed) : restored.ToString();
  }
};

TEST_F(ReadLease, AnOpenCheckpointSurvivesItsDeletionAndIsCollectedOnceClosed) {
  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint("run", 1));
  ASSERT_OK(client_->Delete("run", 1));
  ASSERT_OK_AND_ASSIGN(auto collected, client_->CollectGarbage());
  EXPECT_EQ(collected.report().parts_removed(), 0u) << collected.DebugString();
  ASSERT_EQ(collected.kept_by_reader_size(), 1);
  EXPECT_EQ(collected.kept_by_reader(0).step(), 1u);
  EXPECT_EQ(RestoreFrom(*checkpoint, 1), "");
  // It is gone for everybody else.
  EXPECT_STATUS(reader->OpenCheckpoint("run", 1), absl::StatusCode::kNotFound, "1");

  // Longer than the lease: it is renewed while the checkpoint is open.
  std::this_thread::sleep_for(std::chrono::seconds(5));
  ASSERT_OK(client_->CollectGarbage());
  EXPECT_EQ(RestoreFrom(*checkpoint, 1), "");

  // Now: while the reader slept the server wrote segments ahead of use.
  const uint64_t disk_before = DiskBytes(dir_ / "data/segments");
  checkpoint.reset();
  ASSERT_OK_AND_ASSIGN(collected, client_->CollectGarbage());
  EXPECT_EQ(collected.report().parts_removed(), 2u) << collected.DebugString();
  EXPECT_GE(collected.report().chunk_bytes_removed(), 32u << 20);
  EXPECT_GE(collected.report().disk_bytes_freed() + collected.report().recycled_bytes(), 32u << 20);
  const uint64_t disk_after = DiskBytes(dir_ / "data/segments");
  EXPECT_LE(disk_after + collected.report().disk_bytes_freed(), disk_before + (1u << 20));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 2, Tensors(), 2, 2), "");
}

// A reader that is killed stops renewing: its lease runs out.
TEST_F(ReadLease, OfADeadReaderRunsOut) {
  v1::GetCheckpointRequest find;
  find.set_run("run");
  find.set_step(1);
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse found,
                       client_->Call(&v1::Coordinator::Stub::GetCheckpoint, find));
  v1::OpenReadRequest open;
  open.set_run("run");
  open.set_step(1);
  open.set_save_id(found.record().save_id());
  ASSERT_OK(client_->Call(&v1::Store::Stub::OpenRead, open));
  ASSERT_OK(client_->Delete("run", 1));
  ASSERT_OK_AND_ASSIGN(auto collected, client_->CollectGarbage());
  EXPECT_EQ(collected.report().parts_removed(), 0u);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (collected.report().parts_removed() == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_OK_AND_ASSIGN(collected, client_->CollectGarbage());
  }
  EXPECT_EQ(collected.report().parts_removed(), 2u);
}

// The server forgets leases when it dies: it must not collect before readers had the time to say that they
// still read.
TEST_F(ReadLease, IsHonouredOverARestartOfTheServer) {
  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint("run", 1));
  ASSERT_OK(client_->Delete("run", 1));
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  ASSERT_OK_AND_ASSIGN(auto collected, client_->CollectGarbage());
  EXPECT_EQ(collected.report().parts_removed(), 0u) << collected.DebugString();
  checkpoint.reset();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (collected.report().parts_removed() == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_OK_AND_ASSIGN(collected, client_->CollectGarbage());
  }
  EXPECT_EQ(collected.report().parts_removed(), 2u);
}

TEST_F(ReadLease, AnOpenCheckpointIsReadOnAfterARestartOfTheServer) {
  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint("run", 1));
  EXPECT_EQ(RestoreFrom(*checkpoint, 1), "");
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  EXPECT_EQ(RestoreFrom(*checkpoint, 1), "");
}

TEST_F(ReadLease, PinnedAndNewestCheckpointsAreNotTaken) {
  ASSERT_OK(client_->Pin("run", 1, true));
  EXPECT_EQ(client_->Delete("run", 1).code(), absl::StatusCode::kFailedPrecondition);
  v1::RetentionPolicy policy;
  policy.set_keep_last(1);
  ASSERT_OK_AND_ASSIGN(auto collected, client_->CollectGarbage(&policy));
  EXPECT_EQ(collected.deleted_size(), 0) << collected.DebugString();
  ASSERT_OK(client_->Pin("run", 1, false));
  ASSERT_OK_AND_ASSIGN(collected, client_->CollectGarbage(&policy));
  ASSERT_EQ(collected.deleted_size(), 1) << collected.DebugString();
  EXPECT_EQ(collected.deleted(0).step(), 1u);
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 2, Tensors(), 2, 2), "");
}

}  // namespace
}  // namespace esker::testing
