// The unary calls, end to end, as a client makes them for a save and a restore.
#include <grpcpp/grpcpp.h>

#include "format/envelope.h"
#include "format/frame.h"
#include "format/layout.h"
#include "server/rpc/rpc_options.h"
#include "tests/server/rpc/rpc_fixture.h"

namespace esker::testing {
namespace {

using Coordinator = v1::Coordinator::Stub;
using StoreStub = v1::Store::Stub;

class SaveRestoreRpc : public RpcTest {
 protected:
  SaveRestoreRpc() { StartServer(); }

  absl::StatusOr<std::string> Offer(const v1::SaveContext& save, const std::vector<Hash128>& hashes) {
    v1::OfferChunksRequest request;
    *request.mutable_save() = save;
    for (const Hash128& hash : hashes) request.mutable_hashes()->append(hash.AsText());
    absl::StatusOr<v1::OfferChunksResponse> response = Call(&StoreStub::OfferChunks, request);
    if (!response.ok()) return response.status();
    return response->missing();
  }

  absl::StatusOr<v1::GetPartsResponse> GetParts(const v1::SaveContext& save,
                                                const std::vector<uint32_t>& ranks) {
    v1::GetPartsRequest request;
    request.set_run(save.run());
    request.set_step(save.step());
    request.set_save_id(save.save_id());
    request.mutable_ranks()->Add(ranks.begin(), ranks.end());
    return Call(&StoreStub::GetParts, request);
  }
};

TEST_F(SaveRestoreRpc, ASaveByRawFramesIsRestoredBitForBit) {
  TestPart part;
  const v1::SaveContext save = SaveAll(7, (5 << 20) + 123, 1, &part);

  v1::GetCheckpointRequest get;
  get.set_run(kRun);
  get.set_latest(true);
  ASSERT_OK_AND_ASSIGN(const v1::GetCheckpointResponse checkpoint, Call(&Coordinator::GetCheckpoint, get));
  EXPECT_EQ(checkpoint.record().step(), 7);
  ASSERT_OK_AND_ASSIGN(const v1::Manifest manifest,
                       DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, checkpoint.manifest_envelope()));
  ASSERT_EQ(manifest.servers_size(), 1);
  EXPECT_EQ(manifest.servers(0).address(), server_->address());

  const uint64_t lease = OpenRead(save);
  ASSERT_OK_AND_ASSIGN(const v1::GetPartsResponse parts, GetParts(save, {0}));
  ASSERT_EQ(parts.part_envelopes_size(), 1);
  EXPECT_EQ(parts.part_envelopes(0), part.part_envelope);
  v1::GetLayoutsRequest layouts_request;
  layouts_request.add_digests(part.layout_digest);
  ASSERT_OK_AND_ASSIGN(const v1::GetLayoutsResponse layouts, Call(&StoreStub::GetLayouts, layouts_request));
  ASSERT_EQ(layouts.layout_envelopes_size(), 1);
  EXPECT_EQ(layouts.layout_envelopes(0), part.layout_envelope);

  const std::unique_ptr<RawClient> client = OpenGet(lease);
  for (size_t i = 0; i < part.infos.size(); ++i) client->Write(EncodeWant(i, part.infos[i].hash));
  client->WritesDone();
  for (size_t i = 0; i < part.infos.size(); ++i) {
    const std::optional<Answer> answer = client->ReadAnswer();
    ASSERT_TRUE(answer && answer->is_chunk);
    EXPECT_EQ(answer->tag, i);
    EXPECT_EQ(answer->info, part.infos[i]);
    EXPECT_EQ(answer->stored, part.stored[i]);
  }
  EXPECT_FALSE(client->ReadAnswer());
  EXPECT_OK(client->Finish());

  v1::RenewReadRequest renew;
  renew.set_lease_id(lease);
  EXPECT_OK(Call(&StoreStub::RenewRead, renew));
  v1::CloseReadRequest close;
  close.set_lease_id(lease);
  EXPECT_OK(Call(&StoreStub::CloseRead, close));
  EXPECT_STATUS(Call(&StoreStub::RenewRead, renew), absl::StatusCode::kNotFound, "lease");
}

TEST_F(SaveRestoreRpc, TheCoordinatorsCallsAnswer) {
  const v1::SaveContext save = SaveAll(1, 1000, 1);
  ASSERT_OK_AND_ASSIGN(const v1::ListRunsResponse runs, Call(&Coordinator::ListRuns, {}));
  ASSERT_EQ(runs.runs_size(), 1);
  EXPECT_EQ(runs.runs(0).run(), kRun);

  v1::ListCheckpointsRequest list;
  list.set_run(kRun);
  ASSERT_OK_AND_ASSIGN(v1::ListCheckpointsResponse listed, Call(&Coordinator::ListCheckpoints, list));
  EXPECT_EQ(listed.checkpoints_size(), 1);

  v1::WaitSaveRequest wait;
  *wait.mutable_save() = save;
  wait.set_timeout_ms(60'000);
  ASSERT_OK_AND_ASSIGN(const v1::SaveStatus waited, Call(&Coordinator::WaitSave, wait));
  EXPECT_EQ(waited.state(), v1::SaveStatus::COMMITTED);

  v1::PinCheckpointRequest pin;
  pin.set_run(kRun);
  pin.set_step(1);
  pin.set_pinned(true);
  ASSERT_OK_AND_ASSIGN(const v1::PinCheckpointResponse pinned, Call(&Coordinator::PinCheckpoint, pin));
  EXPECT_TRUE(pinned.record().pinned());
  v1::SetRetentionRequest retention;
  retention.set_run(kRun);
  retention.mutable_policy()->set_keep_last(3);
  EXPECT_OK(Call(&Coordinator::SetRetention, retention));

  v1::AbortSaveRequest abort;
  *abort.mutable_save() = Begin(2);
  abort.set_reason("the test says so");
  EXPECT_OK(Call(&Coordinator::AbortSave, abort));

  v1::DeleteCheckpointRequest remove;
  remove.set_run(kRun);
  remove.set_step(1);
  remove.set_even_if_pinned(true);
  EXPECT_OK(Call(&Coordinator::DeleteCheckpoint, remove));
  EXPECT_OK(Call(&Coordinator::CollectGarbage, {}));
  ASSERT_OK_AND_ASSIGN(listed, Call(&Coordinator::ListCheckpoints, list));
  EXPECT_EQ(listed.checkpoints_size(), 0);
}

TEST_F(SaveRestoreRpc, ErrorsKeepTheirCodeAndMessage) {
  v1::ListCheckpointsRequest list;
  list.set_run("../etc");
  EXPECT_STATUS(Call(&Coordinator::ListCheckpoints, list), absl::StatusCode::kInvalidArgument, "../etc");
  v1::GetCheckpointRequest get;
  get.set_run("nobody");
  get.set_latest(true);
  EXPECT_STATUS(Call(&Coordinator::GetCheckpoint, get), absl::StatusCode::kNotFound, "nobody");
}

TEST_F(SaveRestoreRpc, AnOldAttemptIsFenced) {
  const v1::SaveContext old = Begin(1, 0, 1, "first");
  Begin(2, 0, 1, "second");
  const TestPart part = MakePart(old, 1000, 1);
  EXPECT_FALSE(Offer(old, {part.infos[0].hash}).ok());
  EXPECT_FALSE(Seal(old, part).ok());
  const std::unique_ptr<RawClient> client = OpenPut(old);
  EXPECT_FALSE(client->Finish().ok());
}

TEST_F(SaveRestoreRpc, OfferSaysWhatIsMissing) {
  TestPart part;
  SaveAll(1, 3 << 20, 1, &part);
  const v1::SaveContext save = Begin(2);
  ASSERT_OK_AND_ASSIGN(const std::string missing,
                       Offer(save, {part.infos[0].hash, HashOf(AsBytes("unknown")), part.infos[2].hash}));
  EXPECT_EQ(missing, std::string("\0\1\0", 3));
  EXPECT_OK(Offer(save, std::vector<Hash128>(kMaxOfferedHashes)));
}

TEST_F(SaveRestoreRpc, OfferRefusesTooManyAndHalfHashes) {
  const v1::SaveContext save = Begin(1);
  EXPECT_STATUS(Offer(save, std::vector<Hash128>(kMaxOfferedHashes + 1)), absl::StatusCode::kInvalidArgument,
                "at most 4096 hashes");
  v1::OfferChunksRequest request;
  *request.mutable_save() = save;
  request.set_hashes("15 bytes of it.");
  EXPECT_STATUS(Call(&StoreStub::OfferChunks, request), absl::StatusCode::kInvalidArgument, "found 15 bytes");
}

TEST_F(SaveRestoreRpc, SealNamesWhatWasNotSent) {
  const v1::SaveContext save = Begin(1);
  const TestPart part = MakePart(save, 2 << 20, 1);
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, Seal(save, part));
  EXPECT_FALSE(sealed.has_entry());
  EXPECT_EQ(sealed.missing_hashes().size(), 2 * sizeof(Hash128));
  EXPECT_THAT(sealed.missing_hashes(), ::testing::HasSubstr(Bytes(part.infos[0].hash)));
  EXPECT_THAT(sealed.missing_hashes(), ::testing::HasSubstr(Bytes(part.infos[1].hash)));
}

TEST_F(SaveRestoreRpc, SealingAgainGivesTheSameEntry) {
  const v1::SaveContext save = Begin(1);
  TestPart part = MakePart(save, 1000, 1);
  Put(save, part);
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse first, Seal(save, part));
  part.layout_envelope.clear();
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse second, Seal(save, part));
  EXPECT_EQ(first.entry().SerializeAsString(), second.entry().SerializeAsString());
  EXPECT_EQ(first.server().address(), server_->address());
}

TEST_F(SaveRestoreRpc, SealAsksForAnUnknownLayout) {
  const v1::SaveContext save = Begin(1);
  TestPart part = MakePart(save, 1000, 1);
  Put(save, part);
  part.layout_envelope.clear();
  EXPECT_STATUS(Seal(save, part), absl::StatusCode::kFailedPrecondition, "layout");
}

TEST_F(SaveRestoreRpc, SealRefusesAPartOfAnotherRankOrSave) {
  const v1::SaveContext save = Begin(1, 0, 2);
  v1::SaveContext other = save;
  other.set_rank(1);
  EXPECT_STATUS(Seal(save, MakePart(other, 1000, 1)), absl::StatusCode::kInvalidArgument, "rank 1");
  other = save;
  other.set_save_id(save.save_id() + 1);
  EXPECT_STATUS(Seal(save, MakePart(other, 1000, 1)), absl::StatusCode::kInvalidArgument, "the part says");
  TestPart garbage;
  garbage.part_envelope = "no envelope";
  EXPECT_STATUS(Seal(save, garbage), absl::StatusCode::kInvalidArgument, "part_envelope");
}

TEST_F(SaveRestoreRpc, OpenReadRefusesWhatIsNotCommittedAndLeavesNoLease) {
  const v1::SaveContext save = Begin(1);
  v1::OpenReadRequest request;
  request.set_run(save.run());
  request.set_step(save.step());
  request.set_save_id(save.save_id());
  EXPECT_FALSE(Call(&StoreStub::OpenRead, request).ok());
  EXPECT_FALSE(
      server_->store()->HasReaders({.run = save.run(), .step = save.step(), .save_id = save.save_id()}));
}

TEST_F(SaveRestoreRpc, GetPartsKeepsTheOrderAndRefusesTooMany) {
  const v1::SaveContext first = Begin(1, 0, 2);
  const v1::SaveContext second = Begin(1, 1, 2);
  for (const v1::SaveContext& save : {first, second}) {
    const TestPart part = MakePart(save, 1000, save.rank());
    Put(save, part);
    ASSERT_OK(Seal(save, part));
  }
  ASSERT_OK_AND_ASSIGN(const v1::GetPartsResponse parts, GetParts(first, {1, 0}));
  ASSERT_EQ(parts.part_envelopes_size(), 2);
  EXPECT_EQ(parts.part_envelopes(0), MakePart(second, 1000, 1).part_envelope);
  EXPECT_EQ(parts.part_envelopes(1), MakePart(first, 1000, 0).part_envelope);
  EXPECT_STATUS(GetParts(first, {0, 2}), absl::StatusCode::kNotFound, "");
  EXPECT_STATUS(GetParts(first, {}), absl::StatusCode::kInvalidArgument, "1 to 1024 ranks");
  EXPECT_STATUS(GetParts(first, std::vector<uint32_t>(1025)), absl::StatusCode::kInvalidArgument,
                "found 1025");
}

TEST_F(SaveRestoreRpc, GetLayoutsCutsItsAnswerButGivesAtLeastOne) {
  const v1::SaveContext save = Begin(1, 0, 2);
  // Two layouts of about 5 MiB each: no answer holds both.
  std::vector<std::string> digests;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    v1::SaveContext context = save;
    context.set_rank(rank);
    std::vector<std::string> items;
    for (int i = 0; i < 1300; ++i) items.push_back(std::string(4000, 'a' + rank) + std::to_string(i));
    ASSERT_OK_AND_ASSIGN(const v1::Layout layout, BuildLayout({}, items, 1 << 20));
    TestPart part;
    part.layout_envelope = EncodeEnvelope(EnvelopeKind::kLayout, layout);
    digests.push_back(Bytes(HashOf(AsBytes(part.layout_envelope))));
    v1::Part message;
    message.set_run(context.run());
    message.set_step(context.step());
    message.set_attempt(context.attempt());
    message.set_save_id(context.save_id());
    message.set_rank(rank);
    message.set_layout_digest(digests.back());
    for (int i = 0; i < layout.item_names_size(); ++i) message.add_item_bytes(0);
    part.part_envelope = EncodeEnvelope(EnvelopeKind::kPart, message);
    Begin(1, rank, 2);
    ASSERT_OK(Seal(context, part));
  }
  v1::GetLayoutsRequest request;
  for (const std::string& digest : digests) request.add_digests(digest);
  ASSERT_OK_AND_ASSIGN(const v1::GetLayoutsResponse layouts, Call(&StoreStub::GetLayouts, request));
  ASSERT_EQ(layouts.layout_envelopes_size(), 1);
  EXPECT_EQ(Bytes(HashOf(AsBytes(layouts.layout_envelopes(0)))), digests[0]);
  request.clear_digests();
  EXPECT_STATUS(Call(&StoreStub::GetLayouts, request), absl::StatusCode::kInvalidArgument,
                "1 to 1024 digests");
  request.add_digests("short");
  EXPECT_STATUS(Call(&StoreStub::GetLayouts, request), absl::StatusCode::kInvalidArgument, "layout digest");
}

TEST_F(SaveRestoreRpc, StatusTellsTheFigures) {
  SaveAll(1, 3 << 20, 1);
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse status, Call(&StoreStub::Status, {}));
  EXPECT_EQ(status.server_id(), server_->store()->id());
  EXPECT_EQ(status.version(), "test");
  EXPECT_EQ(status.data_directory(), config_.store.directory);
  EXPECT_FALSE(status.disk_engine().empty());
  EXPECT_EQ(status.chunks(), 3);
  EXPECT_EQ(status.parts(), 1);
  EXPECT_EQ(status.layouts(), 1);
  EXPECT_EQ(status.segment_bytes(), config_.store.segment_bytes);
  EXPECT_GT(status.live_bytes(), 3 << 20);
  EXPECT_GT(status.disk_total_bytes(), 0);
  EXPECT_GT(status.peak_rss_bytes(), 1 << 20);
  EXPECT_GT(status.cpu_seconds(), 0);
}

}  // namespace
}  // namespace esker::testing
