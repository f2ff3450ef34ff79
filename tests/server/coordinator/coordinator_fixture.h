// A coordinator on a real catalog and a real store in a temporary directory, and ranks that save tiny parts
// into it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/catalog/catalog.h"
#include "server/coordinator/coordinator.h"
#include "server/store/store.h"
#include "tests/server/coordinator/faulty_catalog.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {

inline constexpr const char* kRun = "llama";

// A WaitSave that can be awaited.
class Waiting {
 public:
  // The callback for WaitSave; it may outlive this object.
  std::function<void(absl::StatusOr<v1::SaveStatus>)> Done();
  bool answered() const;
  // Blocks until it is called.
  absl::StatusOr<v1::SaveStatus> Await();

 private:
  struct State {
    Mutex mu;
    CondVar called;
    std::optional<absl::StatusOr<v1::SaveStatus>> answer ABSL_GUARDED_BY(mu);
    int calls ABSL_GUARDED_BY(mu) = 0;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest();
  void SetUp() override;
  void TearDown() override;

  // A new coordinator on the same catalog and store: all that it kept in memory is gone.
  void RestartCoordinator();
  // The whole server: catalog and store are opened anew, too.
  void RestartServer();

  // The attempt; fails the test if it is refused.
  uint64_t OpenRun(const std::string& incarnation, const std::string& run = kRun);
  absl::StatusOr<v1::OpenRunResponse> TryOpenRun(const std::string& incarnation,
                                                 const std::string& run = kRun);

  // A save's context as BeginSave gave it.
  v1::SaveContext Begin(uint64_t attempt, uint64_t step, uint32_t rank, uint32_t world_size,
                        const std::string& run = kRun);
  absl::StatusOr<v1::SaveContext> TryBegin(uint64_t attempt, uint64_t step, uint32_t rank,
                                           uint32_t world_size, const std::string& run = kRun);
  // Seals a part of one chunk, whose bytes are `content`, and returns the report of it.
  v1::ReportPartRequest Seal(const v1::SaveContext& save, const std::string& content);
  v1::ReportPartRequest Seal(const v1::SaveContext& save);  // with a content of its own
  absl::StatusOr<v1::SaveStatus> TryReport(const v1::ReportPartRequest& request);
  v1::SaveStatus Report(const v1::ReportPartRequest& request);

  // Begins, seals and reports all ranks; returns the contexts. The save is committed.
  std::vector<v1::SaveContext> Save(uint64_t attempt, uint64_t step, uint32_t world_size = 2,
                                    const std::string& run = kRun);

  Waiting Wait(const v1::SaveContext& save, uint32_t timeout_ms);
  // How the save stands now.
  absl::StatusOr<v1::SaveStatus> Poll(const v1::SaveContext& save);
  absl::Status Abort(const v1::SaveContext& save, const std::string& reason);

  absl::StatusOr<v1::GetCheckpointResponse> Get(uint64_t step, const std::string& run = kRun);
  absl::Status Delete(uint64_t step, bool even_if_pinned = false);
  absl::Status Pin(uint64_t step, bool pinned = true, const std::string& note = "");
  // Steps of the committed checkpoints, as ListCheckpoints gives them: "1 2 3".
  std::string Steps(const std::string& run = kRun);
  v1::ListCheckpointsResponse ListAll(const std::string& run = kRun);
  v1::CollectGarbageResponse Collect(const v1::CollectGarbageRequest& request = {});
  // The reference of the committed checkpoint.
  SaveRef Committed(uint64_t step, const std::string& run = kRun);
  // Every rank's part of this save is in the store, and its chunk can be read.
  void ExpectReadable(const SaveRef& save, uint32_t world_size);
  bool StoreHas(const SaveRef& save);

  // Moves time on, and has the coordinator notice.
  void Pass(int64_t ms);

  const TempDir directory_;
  FakeClock clock_;
  CoordinatorOptions options_;  // collection by itself is off
  std::unique_ptr<Catalog> rocks_;
  std::unique_ptr<FaultyCatalog> catalog_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Coordinator> coordinator_;

 private:
  void OpenServer();
  absl::Status PutChunk(const PartRef& part, const std::string& content);
};

SaveRef RefOfContext(const v1::SaveContext& save);

}  // namespace esker::testing
