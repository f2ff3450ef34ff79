#include "server/coordinator/save_sessions.h"

#include <atomic>
#include <thread>

#include "absl/strings/str_join.h"
#include "format/base/text.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class SaveSessionsTest : public ::testing::Test {
 protected:
  ~SaveSessionsTest() override { sessions_.Close(); }

  void Open(uint32_t world_size) {
    record_.set_run("r");
    record_.set_step(5);
    record_.set_save_id(77);
    record_.set_attempt(1);
    record_.set_world_size(world_size);
    sessions_.Open(record_);
  }
  static v1::PartEntry Part(uint32_t rank, char content = 'a') {
    v1::PartEntry part;
    part.set_rank(rank);
    part.set_part_digest(std::string(16, content));
    part.add_servers(0);
    return part;
  }
  static std::vector<v1::ServerInfo> Servers(const std::string& id = "s") {
    v1::ServerInfo server;
    server.set_id(id);
    return {server};
  }
  v1::SaveStatus Report(uint32_t rank, char content = 'a') {
    const auto status = sessions_.Report(save_, Part(rank, content), Servers());
    EXPECT_OK(status);
    EXPECT_TRUE(status.ok() && status->has_value());
    return status.ok() && status->has_value() ? **status : v1::SaveStatus();
  }
  std::string Missing() {
    const std::optional<SessionView> view = sessions_.View(save_);
    return view.has_value() ? absl::StrJoin(view->missing_ranks, ",") : "no session";
  }
  Waiting Wait(uint32_t rank, uint32_t timeout_ms) {
    Waiting waiting;
    WaitDone done = waiting.Done();
    EXPECT_TRUE(sessions_.Wait(save_, rank, timeout_ms, &done));
    return waiting;
  }

  FakeClock clock_;
  SaveSessions sessions_{&clock_};
  v1::SaveRecord record_;
  const SaveRef save_{"r", 5, 77};
};

TEST_F(SaveSessionsTest, AReportWithoutASessionIsNoError) {
  const auto status = sessions_.Report(save_, Part(0), Servers());
  ASSERT_OK(status);
  EXPECT_FALSE(status->has_value());
}

TEST_F(SaveSessionsTest, ReportsAreCountedOnce) {
  Open(3);
  EXPECT_EQ(Report(1).reported(), 1u);
  EXPECT_EQ(Report(1).reported(), 1u);
  const v1::SaveStatus status = Report(2);
  EXPECT_EQ(status.state(), v1::SaveStatus::SAVING);
  EXPECT_EQ(status.reported(), 2u);
  EXPECT_EQ(status.world_size(), 3u);
  EXPECT_TRUE(status.this_rank_reported());
  ASSERT_EQ(status.missing_ranks_size(), 1);
  EXPECT_EQ(status.missing_ranks(0), 0u);
}

TEST_F(SaveSessionsTest, AContradictionNamesBothPartsAndChangesNothing) {
  Open(2);
  Report(1, 'a');
  EXPECT_STATUS(sessions_.Report(save_, Part(1, 'b'), Servers()), absl::StatusCode::kAlreadyExists,
                "has reported the part 61616161616161616161616161616161, and now reports "
                "62626262626262626262626262626262");
  EXPECT_EQ(Report(1, 'a').reported(), 1u);
}

TEST_F(SaveSessionsTest, MissingRanksAreExactAtEveryWorldSize) {
  for (const uint32_t world_size : {1u, 2u, 15u, 16u, 17u, 63u, 64u, 65u, 127u, 128u, 129u, 1000u}) {
    record_.Clear();
    Open(world_size);
    std::vector<uint32_t> first;
    for (uint32_t rank = 0; rank < world_size && rank < 16; ++rank) first.push_back(rank);
    EXPECT_EQ(Missing(), absl::StrJoin(first, ",")) << world_size;
    for (uint32_t rank = 0; rank + 1 < world_size; ++rank) Report(rank);
    EXPECT_EQ(Missing(), std::to_string(world_size - 1)) << world_size;
    Report(world_size - 1);
    EXPECT_EQ(Missing(), "") << world_size;
    sessions_.End(save_, v1::SaveStatus::ABORTED, "next");
  }
}

TEST_F(SaveSessionsTest, MissingRanksAreFoundBetweenOthers) {
  Open(200);
  for (uint32_t rank = 0; rank < 200; ++rank) {
    if (rank != 0 && rank != 63 && rank != 64 && rank != 130 && rank != 199) Report(rank);
  }
  EXPECT_EQ(Missing(), "0,63,64,130,199");
  Report(0);
  Report(63);
  EXPECT_EQ(Missing(), "64,130,199");
  Report(199);
  EXPECT_EQ(Missing(), "64,130");
}

TEST_F(SaveSessionsTest, TheWorkOfCommittingHoldsAllPartsByRankAndEachServerOnce) {
  Open(3);
  for (const uint32_t rank : {2u, 0u, 1u}) {
    v1::PartEntry part = Part(rank);
    part.clear_servers();
    part.add_servers(1);
    part.add_servers(0);
    std::vector<v1::ServerInfo> servers = Servers("second");
    servers.push_back(Servers(StrCat("own", rank % 2))[0]);
    ASSERT_OK(sessions_.Report(save_, part, servers));
  }
  const std::optional<CommitWork> work = sessions_.TakeCommit(save_);
  ASSERT_TRUE(work.has_value());
  EXPECT_EQ(work->servers.size(), 3u);
  ASSERT_EQ(work->parts.size(), 3u);
  for (uint32_t rank = 0; rank < 3; ++rank) {
    const v1::PartEntry& part = work->parts[rank];
    EXPECT_EQ(part.rank(), rank);
    ASSERT_EQ(part.servers_size(), 2);
    EXPECT_EQ(work->servers[part.servers(0)].id(), StrCat("own", rank % 2));
    EXPECT_EQ(work->servers[part.servers(1)].id(), "second");
  }
  sessions_.CommitFailed(save_);
}

TEST_F(SaveSessionsTest, ThereIsNothingToCommitWhileARankIsMissing) {
  EXPECT_FALSE(sessions_.TakeCommit(save_).has_value());
  Open(2);
  EXPECT_FALSE(sessions_.TakeCommit(save_).has_value());
  Report(0);
  EXPECT_FALSE(sessions_.TakeCommit(save_).has_value());
}

TEST_F(SaveSessionsTest, OneCallerCommitsAtATimeAndTheNextTakesOverAfterAFailure) {
  Open(1);
  Report(0);
  constexpr int kThreads = 8;
  std::atomic<int> at_work = 0;
  std::atomic<int> turns = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      if (!sessions_.TakeCommit(save_).has_value()) return;
      EXPECT_EQ(++at_work, 1);
      const int turn = ++turns;
      std::this_thread::yield();
      --at_work;
      if (turn < 3) {
        sessions_.CommitFailed(save_);
      } else {
        sessions_.End(save_, v1::SaveStatus::COMMITTED, "");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turns, 3);
}

TEST_F(SaveSessionsTest, TheEndAnswersThoseWhoWait) {
  Open(3);
  Report(0);
  const Waiting reported = Wait(0, 1000);
  const Waiting missing = Wait(2, 1000);
  EXPECT_FALSE(reported.answered());
  sessions_.End(save_, v1::SaveStatus::ABORTED, "why");
  ASSERT_TRUE(reported.answered());
  const v1::SaveStatus status = *Waiting(reported).Await();
  EXPECT_EQ(status.state(), v1::SaveStatus::ABORTED);
  EXPECT_EQ(status.reason(), "why");
  EXPECT_EQ(status.reported(), 1u);
  EXPECT_TRUE(status.this_rank_reported());
  EXPECT_EQ(status.missing_ranks_size(), 2);
  EXPECT_FALSE(Waiting(missing).Await()->this_rank_reported());
  EXPECT_FALSE(sessions_.View(save_).has_value());
}

TEST_F(SaveSessionsTest, WhoComesBetweenTheAbortInTheCatalogAndItsEndIsToldOnce) {
  Open(3);
  sessions_.Join(save_, 0);
  EXPECT_OK(sessions_.TellAborted(save_, "rank 0: out of paper", 0));
  EXPECT_STATUS(sessions_.TellAborted(save_, "rank 0: out of paper", 1), absl::StatusCode::kAborted,
                "out of paper");
  sessions_.End(save_, v1::SaveStatus::ABORTED, "rank 0: out of paper");
  EXPECT_OK(sessions_.TellAborted(save_, "rank 0: out of paper", 1));
  EXPECT_STATUS(sessions_.TellAborted(save_, "rank 0: out of paper", 2), absl::StatusCode::kAborted,
                "out of paper");
}

TEST_F(SaveSessionsTest, WhoJoinsASaveThatWasJustAbortedIsNotToldAgainAtTheNextOne) {
  Open(2);
  sessions_.End(save_, v1::SaveStatus::ABORTED, "rank 0: out of paper");
  sessions_.Join(save_, 1);
  EXPECT_OK(sessions_.TellAborted(save_, "rank 0: out of paper", 1));
}

TEST_F(SaveSessionsTest, WaitsRunOutOneByOne) {
  Open(2);
  Report(1);
  Waiting one = Wait(0, 100);
  Waiting two = Wait(1, 200);
  Waiting at_once = Wait(1, 0);
  EXPECT_TRUE(at_once.answered());
  EXPECT_EQ(at_once.Await()->reported(), 1u);
  sessions_.AnswerWaits(clock_.MonotonicMillis() + 99);
  EXPECT_FALSE(one.answered());
  sessions_.AnswerWaits(clock_.MonotonicMillis() + 100);
  ASSERT_TRUE(one.answered());
  EXPECT_FALSE(two.answered());
  EXPECT_EQ(one.Await()->state(), v1::SaveStatus::SAVING);
  EXPECT_FALSE(one.Await()->this_rank_reported());
  sessions_.AnswerWaits(clock_.MonotonicMillis() + 1000);
  ASSERT_TRUE(two.answered());
  EXPECT_TRUE(two.Await()->this_rank_reported());
  sessions_.AnswerWaits(clock_.MonotonicMillis() + 10'000);
}

TEST_F(SaveSessionsTest, ProgressIsOpeningReportsAndWhatIsToldOf) {
  const int64_t start = clock_.MonotonicMillis();
  Open(3);
  clock_.Advance(10);
  EXPECT_FALSE(sessions_.Open(record_));
  EXPECT_EQ(sessions_.View(save_)->last_progress_ms, start);
  Report(0);
  EXPECT_EQ(sessions_.View(save_)->last_progress_ms, start + 10);
  clock_.Advance(10);
  Report(0);
  EXPECT_EQ(sessions_.View(save_)->last_progress_ms, start + 10) << "a repeated report is none";
  sessions_.Progress(save_, start + 15);
  sessions_.Progress(save_, start + 5);
  EXPECT_EQ(sessions_.View(save_)->last_progress_ms, start + 15);
}

TEST_F(SaveSessionsTest, SessionsAreCountedByRun) {
  Open(1);
  for (uint64_t step = 1; step <= 3; ++step) {
    v1::SaveRecord other;
    other.set_run("ra");
    other.set_step(step);
    other.set_save_id(step);
    other.set_world_size(1);
    sessions_.Open(other);
  }
  EXPECT_EQ(sessions_.Count("r"), 1u);
  EXPECT_EQ(sessions_.Count("ra"), 3u);
  EXPECT_EQ(sessions_.Count("q"), 0u);
  EXPECT_EQ(sessions_.Count("z"), 0u);
}

TEST_F(SaveSessionsTest, WithoutASessionThereIsNothingToWaitFor) {
  Waiting waiting;
  WaitDone done = waiting.Done();
  EXPECT_FALSE(sessions_.Wait(save_, 0, 1000, &done));
  EXPECT_TRUE(done);
}

TEST_F(SaveSessionsTest, ClosingAnswersThoseWhoWaitAndThoseWhoCome) {
  Open(1);
  Waiting before = Wait(0, 1000);
  sessions_.Close();
  EXPECT_STATUS(before.Await(), absl::StatusCode::kUnavailable, "stopping");
  Waiting after = Wait(0, 1000);
  EXPECT_STATUS(after.Await(), absl::StatusCode::kUnavailable, "stopping");
}

}  // namespace
}  // namespace esker::testing
