// The local server against clients that don't play by the rules.
#include "server/local/local_server.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/local/local_fixture.h"

namespace esker::testing {
namespace {

TEST_F(LocalServerTest, SavesWhatLiesInTheArena) {
  const auto client = Client();
  client->Fill(1);
  const std::byte* const second = client->bytes() + RecordBytes(kChunkBytes) + PayloadOffset(kChunkBytes);
  const Hash128 hash = HashOf({second, kChunkBytes});
  client->SendSave(SaveOf(5));
  client->SendReady(1);
  client->AwaitAccepted();
  EXPECT_EQ(Steps(), "");
  client->SendReady(3);
  const v1::LocalAnswer end = client->AwaitEnd();
  ASSERT_TRUE(end.has_sealed());
  EXPECT_EQ(end.sealed().progress().written_bytes(), 3 * kChunkBytes);
  EXPECT_EQ(end.sealed().entry().raw_bytes(), 3 * kChunkBytes);
  EXPECT_EQ(Steps(), "5");
  EXPECT_OK(store_->Locate(hash).status());
}

TEST_F(LocalServerTest, FinishesWhatADeadClientLeft) {
  auto client = Client();
  client->Fill(2);
  client->SendSave(SaveOf(6));
  client->SendReady(3);
  client = nullptr;
  local_->Shutdown(std::chrono::seconds(30));  // waits for it
  EXPECT_EQ(Steps(), "6");
}

TEST_F(LocalServerTest, GivesUpWhatADeadClientDidNotFinish) {
  auto client = Client();
  client->Fill(3);
  client->SendSave(SaveOf(7));
  client->SendReady(2);
  client->AwaitAccepted();
  client = nullptr;
  local_->Shutdown(std::chrono::seconds(30));
  EXPECT_EQ(Steps(), "");
  const v1::ListCheckpointsResponse all = ListAll();
  ASSERT_EQ(all.saves_size(), 1);
  EXPECT_EQ(all.saves(0).record().state(), v1::SaveRecord::ABORTED);
  EXPECT_NE(all.saves(0).record().reason().find("not complete"), std::string::npos)
      << all.saves(0).record().reason();
  EXPECT_TRUE(store_->OpenSaves().empty());
}

TEST_F(LocalServerTest, RefusesWhoDoesNotKnowTheToken) {
  LocalClient client(*local_);
  const v1::LocalAnswer answer = client.Greet("0123456789abcdef");
  ASSERT_TRUE(answer.has_failed());
  EXPECT_EQ(answer.failed().code(), static_cast<uint32_t>(absl::StatusCode::kFailedPrecondition));
  ExpectServing(1);
}

TEST_F(LocalServerTest, RefusesAnArenaOfALyingLength) {
  LocalClient client(*local_);
  const v1::LocalAnswer answer = client.Greet(local_->token(), kArenaBytes + 1);
  ASSERT_TRUE(answer.has_failed());
  EXPECT_EQ(answer.failed().code(), static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
  ExpectServing(1);
}

TEST_F(LocalServerTest, EndsConnectionsThatSendGarbage) {
  LocalClient unwelcome(*local_);
  unwelcome.SendText("GET / HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(unwelcome.Next().has_failed());
  const auto client = Client();
  client->SendText(std::string(kMaxPacketBytes, '\xff'));
  EXPECT_TRUE(client->Next().has_failed());
  ExpectServing(1);
}

TEST_F(LocalServerTest, RefusesRequestsOutsideTheArena) {
  const auto client = Client();
  for (const auto& [offset, bytes] : std::vector<std::pair<uint64_t, uint64_t>>{{kArenaBytes, 1},
                                                                                {kArenaBytes - 1, 2},
                                                                                {~uint64_t{0}, 1},
                                                                                {1, ~uint64_t{0}},
                                                                                {0, kArenaBytes + 1}}) {
    v1::LocalRequest request;
    request.mutable_save()->set_request_offset(offset);
    request.mutable_save()->set_request_bytes(bytes);
    client->Send(request);
    const v1::LocalAnswer answer = client->Next();
    ASSERT_TRUE(answer.has_failed());
    EXPECT_EQ(answer.failed().code(), static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
  }
  // And the next one is served.
  client->Fill(4);
  client->SendSave(SaveOf(2));
  client->SendReady(3);
  EXPECT_TRUE(client->AwaitEnd().has_sealed());
}

TEST_F(LocalServerTest, RefusesALayoutThatDoesNotFitIntoTheArena) {
  const auto client = Client();
  v1::ArenaSave save = SaveOf(3);
  const std::vector<ShardSpec> shards = {{"w", DType::kU8, {kArenaBytes}, WholeBox({kArenaBytes})}};
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout, BuildLayout(shards, {}, kChunkBytes));
  save.set_layout_envelope(EncodeEnvelope(EnvelopeKind::kLayout, layout));
  client->SendSave(save);
  const v1::LocalAnswer answer = client->AwaitEnd();
  ASSERT_TRUE(answer.has_failed());
  EXPECT_NE(answer.failed().message().find("the arena has 1048576"), std::string::npos)
      << answer.failed().message();
}

TEST_F(LocalServerTest, RefusesSavesThatContradictThemselves) {
  const auto expect_refused = [&](const std::function<void(v1::ArenaSave*)>& spoil) {
    const auto client = Client();
    v1::ArenaSave save = SaveOf(4);
    spoil(&save);
    client->SendSave(save);
    client->SendReady(3);
    EXPECT_TRUE(client->AwaitEnd().has_failed()) << save.ShortDebugString();
  };
  expect_refused([](v1::ArenaSave* save) { save->set_layout_envelope("no envelope"); });
  expect_refused([](v1::ArenaSave* save) { save->set_codec(200); });
  expect_refused([](v1::ArenaSave* save) { save->set_run("no such run"); });
  expect_refused([](v1::ArenaSave* save) { save->set_attempt(9); });
  expect_refused([](v1::ArenaSave* save) { save->set_rank(1); });
  expect_refused([](v1::ArenaSave* save) { save->add_item_chunk_raw_bytes(0); });
  expect_refused([](v1::ArenaSave* save) { save->add_item_chunk_raw_bytes(~uint64_t{0}); });
  expect_refused([](v1::ArenaSave* save) { save->add_item_bytes(17); });  // of which the layout knows nothing
  EXPECT_EQ(Steps(), "");
  ExpectServing(5);
}

TEST_F(LocalServerTest, RefusesReadyChunksThatThereAreNot) {
  const auto client = Client();
  client->SendSave(SaveOf(1));
  client->SendReady(2);
  client->SendReady(1);
  EXPECT_TRUE(client->AwaitEnd().has_failed());
  client->SendSave(SaveOf(2));
  client->SendReady(4);
  EXPECT_TRUE(client->AwaitEnd().has_failed());
  EXPECT_EQ(Steps(), "");
  ExpectServing(3);
}

TEST_F(LocalServerTest, FencesOffOlderAttempts) {
  const auto client = Client();
  client->Fill(5);
  client->SendSave(SaveOf(1));
  ASSERT_TRUE(client->Next().has_taken());
  // The newer attempt waits for what the older one hands over, but not for ever.
  EXPECT_STATUS(TryOpenRun("second"), absl::StatusCode::kUnavailable, "last attempt");
  clock_.Advance(20'000);
  EXPECT_OK(TryOpenRun("second").status());
  client->SendReady(3);
  const v1::LocalAnswer end = client->AwaitEnd();
  ASSERT_TRUE(end.has_failed());
  EXPECT_EQ(Steps(), "");
}

TEST_F(LocalServerTest, ChangesUnderItsHandsHarmOnlyWhoMakesThem) {
  const auto client = Client();
  client->Fill(6);
  client->SendSave(SaveOf(1));
  client->SendReady(3);
  for (int i = 0; i < 1000; ++i) client->Fill(static_cast<uint8_t>(i));
  const v1::LocalAnswer end = client->AwaitEnd();
  EXPECT_TRUE(end.has_sealed() || end.has_failed());
  ExpectServing(2);
}

TEST_F(LocalServerTest, GoesOnThoughAClientTakesNoAnswers) {
  std::vector<std::unique_ptr<LocalClient>> silent;
  for (uint64_t step = 1; step <= 3; ++step) {
    silent.push_back(Client());
    silent.back()->Fill(static_cast<uint8_t>(step));
    for (uint64_t i = 0; i < 40; ++i) {
      silent.back()->SendSave(SaveOf(step * 1000 + i));
      silent.back()->SendReady(3);
    }
  }
  ExpectServing(9);
  local_->Shutdown(std::chrono::seconds(60));
}

}  // namespace
}  // namespace esker::testing
