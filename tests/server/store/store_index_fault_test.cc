// When RocksDB fails.
#include <filesystem>
#include <fstream>

#include "server/store/store.h"
#include "tests/server/store/failing_logs.h"
#include "tests/server/store/store_fixture.h"

namespace esker::testing {
namespace {

class StoreIndexFaultTest : public StoreTest {
 protected:
  StoreIndexFaultTest() : logs_(std::make_shared<FailingLogs>()), env_(rocksdb::NewCompositeEnv(logs_)) {
    index_env_ = env_.get();
  }
  ~StoreIndexFaultTest() override { Close(); }

  std::filesystem::path LargestLog() const {
    std::filesystem::path largest;
    for (const auto& entry : std::filesystem::directory_iterator(directory_ / "store/index")) {
      if (entry.path().extension() != ".log") continue;
      if (largest.empty() || entry.file_size() > std::filesystem::file_size(largest)) largest = entry.path();
    }
    return largest;
  }

  const std::shared_ptr<FailingLogs> logs_;
  const std::unique_ptr<rocksdb::Env> env_;
};

// The failed batch is in the log: after a crash the part is there. So its chunks' places must not have been
// used for anything else meanwhile.
TEST_F(StoreIndexFaultTest, WhatAFailedWriteMayHaveWrittenIsNotDestroyed) {
  options_.recycle_bytes = 0;
  Open();
  const std::vector<TestChunk> kept = MakeChunks(1, 3, 500'000);
  const std::vector<TestChunk> lost = MakeChunks(100, 3, 500'000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), kept));
  logs_->fail_syncs = true;
  EXPECT_STATUS(SavePart(store_.get(), MakePart(2), lost), absl::StatusCode::kUnavailable,
                "restart the server");
  EXPECT_STATUS(store_->GetPart(MakePart(2).save, 0), absl::StatusCode::kNotFound, "run@2");
  EXPECT_STATUS(store_->RemoveSave(MakePart(1).save), absl::StatusCode::kUnavailable, "restart the server");
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), kept));
  store_->EndSave(MakePart(2).save);
  const uint64_t punched = faults_.count(DiskOp::kPunch);
  const absl::StatusOr<RemovedSpace> removed = store_->RemoveSave(MakePart(2).save);  // ends in a Reclaim
  EXPECT_EQ(faults_.count(DiskOp::kPunch), punched);
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), kept));

  logs_->fail_syncs = false;
  Reopen();
  ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, store_->ListSaves());
  EXPECT_EQ(saves, (std::vector<SaveRef>{MakePart(1).save, MakePart(2).save}));
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), kept));
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), lost));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreIndexFaultTest, AFullDiskIsSaidSoAndIsOverWhenThereIsSpaceAgain) {
  Open();
  const std::vector<TestChunk> first = MakeChunks(1, 2, 5000);
  const std::vector<TestChunk> second = MakeChunks(10, 2, 5000);
  ASSERT_OK(SavePart(store_.get(), MakePart(1), first));
  logs_->no_space = true;
  EXPECT_STATUS(SavePart(store_.get(), MakePart(2), second), absl::StatusCode::kResourceExhausted, "index");
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), first));
  logs_->no_space = false;
  // RocksDB looks for space every few seconds.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!SealChunks(store_.get(), MakePart(2), second).ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), second));
  ASSERT_OK(store_->RemoveSave(MakePart(1).save));
  EXPECT_OK(store_->CheckConsistency());
  Reopen();
  EXPECT_OK(CheckPart(store_.get(), MakePart(2), second));
  EXPECT_OK(store_->CheckConsistency());
}

TEST_F(StoreIndexFaultTest, ADamagedLogIsDataLoss) {
  Open();
  for (uint64_t step = 0; step < 20; ++step)
    ASSERT_OK(SavePart(store_.get(), MakePart(step), MakeChunks(step, 2, 100)));
  Close();
  std::fstream log(LargestLog(), std::ios::in | std::ios::out | std::ios::binary);
  log.seekp(static_cast<std::streamoff>(std::filesystem::file_size(LargestLog()) / 2));
  log.put('?');
  log.put('!');
  log.close();
  EXPECT_STATUS(TryOpen(), absl::StatusCode::kDataLoss, directory_ / "store/index");
}

TEST_F(StoreIndexFaultTest, ALastRecordThatIsCutShortIsForgotten) {
  Open();
  ASSERT_OK(SavePart(store_.get(), MakePart(1), MakeChunks(1, 3, 5000)));
  ASSERT_OK(SavePart(store_.get(), MakePart(2), MakeChunks(10, 3, 5000)));
  Close();
  std::filesystem::resize_file(LargestLog(), std::filesystem::file_size(LargestLog()) - 100);
  Open();
  EXPECT_OK(CheckPart(store_.get(), MakePart(1), MakeChunks(1, 3, 5000)));
  EXPECT_STATUS(store_->GetPart(MakePart(2).save, 0), absl::StatusCode::kNotFound, "run@2");
  EXPECT_OK(store_->CheckConsistency());
}

}  // namespace
}  // namespace esker::testing
