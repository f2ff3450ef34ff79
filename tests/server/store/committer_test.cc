#include "server/store/committer.h"

#include <future>

#include "tests/server/store/components_fixture.h"

namespace esker::store {
namespace {

using esker::testing::ComponentsTest;
using esker::testing::DiskOp;
using esker::testing::MakeChunk;
using esker::testing::MakePart;

class CommitterTest : public ComponentsTest {
 protected:
  void SetUp() override {
    ComponentsTest::SetUp();
    committer_ = std::make_unique<Committer>(*context_);
  }
  void TearDown() override { committer_ = nullptr; }

  // Stops the thread in a task until the returned promise is fulfilled.
  std::promise<void> Block() {
    std::promise<void> go;
    committer_->Post(
        [gone = std::make_shared<std::future<void>>(go.get_future())](CommitContext*) { gone->wait(); });
    return go;
  }

  std::unique_ptr<Committer> committer_;
};

TEST_F(CommitterTest, SealsThatWaitAreOneGroup) {
  constexpr uint32_t kSeals = 64;
  std::vector<SealRequest> requests;
  for (uint32_t rank = 0; rank < kSeals; ++rank) {
    WriteChunk(MakePart(1, rank), MakeChunk(rank, 5000));
    requests.push_back(MakeRequest(MakePart(1, rank), {MakeChunk(rank, 5000)}));
  }
  std::promise<void> go = Block();
  std::vector<std::future<absl::StatusOr<SealResult>>> seals;
  for (const SealRequest& request : requests) {
    seals.push_back(std::async(std::launch::async, [&] { return committer_->Seal(request); }));
  }
  go.set_value();
  for (auto& seal : seals) ASSERT_OK(seal.get());
  // At most one group began before the last had been asked for, in each moment that the threads took to
  // start.
  EXPECT_LT(faults_.count(DiskOp::kSync), kSeals / 2);
  EXPECT_EQ(counts_.parts, kSeals);
}

TEST_F(CommitterTest, TheSamePartTwiceIsSealedInTurns) {
  WriteChunk(MakePart(1), MakeChunk(1, 5000));
  const SealRequest request = MakeRequest(MakePart(1), {MakeChunk(1, 5000)});
  std::promise<void> go = Block();
  std::vector<std::future<absl::StatusOr<SealResult>>> seals;
  for (int i = 0; i < 5; ++i) {
    seals.push_back(std::async(std::launch::async, [&] { return committer_->Seal(request); }));
  }
  go.set_value();
  for (auto& seal : seals) {
    const absl::StatusOr<SealResult> result = seal.get();
    ASSERT_OK(result);
    EXPECT_EQ(result->entry.new_stored_bytes(), 5000u);
  }
  EXPECT_EQ(counts_.parts, 1u);
}

TEST_F(CommitterTest, TasksRunInOrderAndRunWaits) {
  std::vector<int> order;
  std::promise<void> go = Block();
  committer_->Post([&](CommitContext*) { order.push_back(1); });
  committer_->Post([&](CommitContext*) { order.push_back(2); });
  go.set_value();
  const absl::Status status = committer_->Run([&](CommitContext*) {
    order.push_back(3);
    return absl::AbortedError("its own status");
  });
  EXPECT_STATUS(status, absl::StatusCode::kAborted, "its own status");
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST_F(CommitterTest, StopDoesWhatIsWaitingAndWhatThatPosts) {
  int done = 0;
  std::promise<void> go = Block();
  committer_->Post([&](CommitContext*) {
    ++done;
    committer_->Post([&](CommitContext*) { ++done; });
  });
  go.set_value();
  committer_->Stop();
  EXPECT_EQ(done, 2);
}

TEST_F(CommitterTest, SettleReapsAndReleases) {
  Save(MakePart(1), {MakeChunk(1, 5000)});
  const WrittenChunk written = WriteChunk(MakePart(2), MakeChunk(2, 5000));
  committer_->Settle(sessions_->EndSave(MakePart(2).save));
  EXPECT_EQ(InfoOf(written.place.segment_id).used_bytes, RecordBytes(5000));
  ASSERT_TRUE(sessions_->PinForRead(MakeChunk(1, 5000).hash()));
  ASSERT_OK(committer_->Run([](CommitContext* context) {
    std::vector<Hash128> unpinned;
    return RemoveParts(context, MakePart(1).save, std::vector<uint32_t>{0}, &unpinned).status();
  }));
  committer_->Settle(sessions_->Unpin(std::vector{MakeChunk(1, 5000).hash()}));
  ASSERT_OK(committer_->Run([](CommitContext*) { return absl::OkStatus(); }));
  EXPECT_EQ(counts_.chunks, 0u);
  EXPECT_EQ(InfoOf(written.place.segment_id).used_bytes, 0u);
}

}  // namespace
}  // namespace esker::store
