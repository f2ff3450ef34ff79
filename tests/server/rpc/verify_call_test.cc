#include "server/rpc/verify_call.h"

#include <fstream>

#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"

namespace esker::testing {
namespace {

struct Verified {
  absl::Status status;
  std::vector<v1::ChunkFault> faults;
  v1::VerifyPartsProgress last;
  int messages = 0;
};

class VerifyCallTest : public RpcTest {
 protected:
  VerifyCallTest() { StartServer(); }

  static v1::VerifyPartsRequest RequestFor(const v1::SaveContext& save) {
    v1::VerifyPartsRequest request;
    request.set_run(save.run());
    request.set_step(save.step());
    request.set_save_id(save.save_id());
    return request;
  }

  Verified Verify(const v1::VerifyPartsRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    const auto reader = store_->VerifyParts(&context, request);
    Verified verified;
    while (reader->Read(&verified.last)) {
      ++verified.messages;
      verified.faults.insert(verified.faults.end(), verified.last.faults().begin(),
                             verified.last.faults().end());
    }
    verified.status = FromGrpc(reader->Finish());
    return verified;
  }

  // Changes one byte of a chunk's stored bytes on the disk.
  ChunkLocation Damage(const Hash128& hash, uint64_t stored_bytes) {
    const absl::StatusOr<ChunkLocation> location = server_->store()->Locate(hash);
    EXPECT_OK(location);
    if (!location.ok()) return {};
    std::string path = location->file;
    if (path.find('/') == std::string::npos) path = config_.store.directory + "/segments/" + path;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    EXPECT_TRUE(file.good()) << path;
    const auto at =
        static_cast<std::streamoff>(location->offset + PayloadOffset(stored_bytes) + stored_bytes / 2);
    file.seekg(at);
    const char byte = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 1));
    file.close();
    return *location;
  }
};

TEST_F(VerifyCallTest, ASoundCheckpointHasNoFaults) {
  const v1::SaveContext save = SaveAll(1, 200 << 10, 1);
  const Verified small = Verify(RequestFor(save));
  EXPECT_OK(small.status);
  EXPECT_EQ(small.last.chunks_total(), 1);
  EXPECT_EQ(small.last.chunks_done(), 1);

  TestPart part;
  const Verified verified = Verify(RequestFor(SaveAll(2, 40 << 20, 2, &part)));
  EXPECT_OK(verified.status);
  EXPECT_TRUE(verified.faults.empty());
  EXPECT_EQ(verified.last.chunks_total(), 40);
  EXPECT_EQ(verified.last.chunks_done(), 40);
  EXPECT_EQ(verified.last.bytes_read(), 40 << 20);
}

TEST_F(VerifyCallTest, AFlippedByteIsNamedWithItsPlace) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 5 << 20, 1, &part);
  const ChunkLocation location = Damage(part.infos[3].hash, part.infos[3].stored_bytes);
  const Verified verified = Verify(RequestFor(save));
  EXPECT_OK(verified.status);
  ASSERT_EQ(verified.faults.size(), 1);
  const v1::ChunkFault& fault = verified.faults[0];
  EXPECT_EQ(fault.rank(), 0);
  EXPECT_EQ(fault.chunk_index(), 3);
  EXPECT_EQ(fault.hash(), Bytes(part.infos[3].hash));
  EXPECT_EQ(fault.file(), location.file);
  EXPECT_EQ(fault.file_offset(), location.offset);
  EXPECT_FALSE(fault.error().empty());
  EXPECT_EQ(verified.last.chunks_done(), 5);

  // And it is not handed out.
  const std::unique_ptr<RawClient> client = OpenGet(OpenRead(save));
  client->Write(EncodeWant(1, part.infos[3].hash));
  const std::optional<Answer> answer = client->ReadAnswer();
  ASSERT_TRUE(answer);
  EXPECT_FALSE(answer->is_chunk);
  EXPECT_EQ(answer->status.code(), absl::StatusCode::kDataLoss);
}

TEST_F(VerifyCallTest, AChunkThatIsNotWhatItsNameSaysIsAFault) {
  // The bytes on the wire were right; only their name was wrong.
  const v1::SaveContext save = Begin(1);
  TestPart part = MakePart(save, 1 << 20, 1);
  part.stored[0] = RandomBytes(1 << 20, 2);
  part.infos[0].stored_crc32c = Crc32c(AsBytes(part.stored[0]));
  Put(save, part);
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, Seal(save, part));
  ASSERT_OK(Report(save, sealed));
  const Verified verified = Verify(RequestFor(save));
  EXPECT_OK(verified.status);
  ASSERT_EQ(verified.faults.size(), 1);
  EXPECT_THAT(verified.faults[0].error(), ::testing::HasSubstr("expected content"));
}

TEST_F(VerifyCallTest, OnlyTheRanksAskedForAndAMissingOneIsAFault) {
  const v1::SaveContext save = SaveAll(1, 3 << 20, 1);
  v1::VerifyPartsRequest request = RequestFor(save);
  request.add_ranks(0);
  request.add_ranks(9);
  const Verified verified = Verify(request);
  EXPECT_OK(verified.status);
  EXPECT_EQ(verified.last.chunks_done(), 3);
  ASSERT_EQ(verified.faults.size(), 1);
  EXPECT_EQ(verified.faults[0].rank(), 9);
  EXPECT_THAT(verified.faults[0].error(), ::testing::HasSubstr("the part can't be read"));
}

TEST_F(VerifyCallTest, WhatIsNotCommittedIsRefused) {
  EXPECT_FALSE(Verify(RequestFor(Begin(1))).status.ok());
}

TEST_F(VerifyCallTest, ManyFaultsComeInSeveralMessages) {
  TestPart part;
  const v1::SaveContext save = SaveAll(1, 20 << 20, 1, &part);
  for (const ChunkInfo& info : part.infos) Damage(info.hash, info.stored_bytes);
  const Verified verified = Verify(RequestFor(save));
  EXPECT_OK(verified.status);
  EXPECT_EQ(verified.faults.size(), 20);
}

TEST_F(VerifyCallTest, OneThatIsCancelledStops) {
  const v1::SaveContext save = SaveAll(1, 40 << 20, 1);
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto reader = store_->VerifyParts(&context, RequestFor(save));
    if (i % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(i));
    context.TryCancel();
    v1::VerifyPartsProgress progress;
    while (reader->Read(&progress)) {
    }
    (void)reader->Finish();
  }
  EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }));
  // None is left that would count against the limit.
  EXPECT_TRUE(Eventually([&] { return Verify(RequestFor(save)).status.ok(); }));
}

}  // namespace
}  // namespace esker::testing
