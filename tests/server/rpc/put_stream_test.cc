#include "server/rpc/put_stream.h"

#include "format/frame.h"
#include "tests/server/rpc/rpc_fixture.h"

namespace esker::testing {
namespace {

class PutStreamTest : public RpcTest {
 protected:
  PutStreamTest() { StartServer(); }

  // The stream ends with this error.
  static void ExpectEnds(RawClient* client, absl::StatusCode code, const std::string& text) {
    EXPECT_STATUS(client->Finish(), code, text);
  }
};

TEST_F(PutStreamTest, MessagesOfAnySizeMakeAChunk) {
  const v1::SaveContext save = Begin(1);
  const std::string raw = RandomBytes((3 << 20) + 17, 1);
  const std::unique_ptr<RawClient> client = OpenPut(save);
  for (const size_t message_bytes : {size_t{64} << 10, size_t{999'983}, size_t{2} << 20}) {
    client->WriteChunk(message_bytes, InfoOf(raw), raw, message_bytes);
    const std::optional<Answer> ack = client->ReadAnswer();
    ASSERT_TRUE(ack);
    EXPECT_EQ(ack->tag, message_bytes);
    EXPECT_OK(ack->status);
  }
  const std::string tiny = "x";
  client->WriteChunk(1, InfoOf(tiny), tiny);
  const std::optional<Answer> ack = client->ReadAnswer();
  ASSERT_TRUE(ack);
  EXPECT_OK(ack->status);
  client->WritesDone();
  EXPECT_OK(client->Finish());
}

TEST_F(PutStreamTest, ADamagedChunkIsAskedForAgainAndTheStreamGoesOn) {
  const v1::SaveContext save = Begin(1);
  const TestPart part = MakePart(save, 1 << 20, 1);
  const std::unique_ptr<RawClient> client = OpenPut(save);
  std::string damaged = part.stored[0];
  damaged[damaged.size() / 2] ^= 1;
  client->WriteChunk(5, part.infos[0], damaged);
  std::optional<Answer> ack = client->ReadAnswer();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tag, 5);
  EXPECT_STATUS(ack->status, absl::StatusCode::kDataLoss, "send it again");

  client->WriteChunk(5, part.infos[0], part.stored[0]);
  ack = client->ReadAnswer();
  ASSERT_TRUE(ack);
  EXPECT_OK(ack->status);
  client->WritesDone();
  EXPECT_OK(client->Finish());
  EXPECT_OK(Seal(save, part));
}

TEST_F(PutStreamTest, ATagIsFreeOnceItIsAcknowledged) {
  const v1::SaveContext save = Begin(1);
  const std::unique_ptr<RawClient> client = OpenPut(save);
  for (int i = 0; i < 300; ++i) {
    const std::string content = "chunk " + std::to_string(i);
    client->WriteChunk(5, InfoOf(content), content);
    const std::optional<Answer> ack = client->ReadAnswer();
    ASSERT_TRUE(ack) << "chunk " << i;
    ASSERT_OK(ack->status);
  }
  client->WritesDone();
  EXPECT_OK(client->Finish());
}

TEST_F(PutStreamTest, ManyChunksInFlightAreAllAcknowledged) {
  const v1::SaveContext save = Begin(1);
  const TestPart part = MakePart(save, 60 << 20, 1);  // twice the buffer pool
  Put(save, part);
  ASSERT_OK_AND_ASSIGN(const v1::SealPartResponse sealed, Seal(save, part));
  EXPECT_TRUE(sealed.has_entry());
}

TEST_F(PutStreamTest, TheHelloMustComeFirst) {
  RawClient client(channel_, kPutChunks);
  client.Write(EncodeChunkFrame(0, InfoOf("x")));
  ExpectEnds(&client, absl::StatusCode::kInvalidArgument, "expected kHello first");
}

TEST_F(PutStreamTest, TheHelloMustBeASaveContext) {
  RawClient client(channel_, kPutChunks);
  client.Write(EncodeHello("\xff\xff no protobuf"));
  ExpectEnds(&client, absl::StatusCode::kInvalidArgument, "no SaveContext");
}

TEST_F(PutStreamTest, TheHelloMustNameAnOpenSave) {
  v1::SaveContext save = Begin(1);
  save.set_save_id(save.save_id() + 1);
  ExpectEnds(OpenPut(save).get(), absl::StatusCode::kNotFound, "");
}

TEST_F(PutStreamTest, MalformedHeadsEndTheStream) {
  const v1::SaveContext save = Begin(1);
  const ChunkInfo info = InfoOf("hello");
  ChunkInfo too_long = info;
  too_long.raw_bytes = too_long.stored_bytes = kMaxChunkBytes + 1;
  std::string unknown_codec = EncodeChunkFrame(3, info);
  unknown_codec[16] = 99;
  const std::pair<std::string, std::string> cases[] = {
      {"", "expected kChunk"},
      {"short", "expected kChunk"},
      {std::string(16, '\0'), "expected kChunk"},
      {EncodeHello("again"), "expected kChunk (tag 0)"},
      {EncodeWant(4, info.hash), "expected kChunk (tag 4)"},
      {EncodeAck(4, absl::OkStatus()), "expected kChunk (tag 4)"},
      {EncodeChunkFrame(3, info) + "x", "expected kChunk (tag 3)"},
      {EncodeChunkFrame(3, info).substr(0, 55), "expected kChunk (tag 3)"},
      {EncodeChunkFrame(3, too_long), "expected kChunk (tag 3)"},
      {unknown_codec, "expected kChunk (tag 3)"},
      {std::string(5000, 'x'), "found a message of 5000 bytes"},
  };
  for (const auto& [message, text] : cases) {
    const std::unique_ptr<RawClient> client = OpenPut(save);
    client->Write(message);
    ExpectEnds(client.get(), absl::StatusCode::kInvalidArgument, text);
  }
}

TEST_F(PutStreamTest, BodiesThatDoNotFitEndTheStream) {
  const v1::SaveContext save = Begin(1);
  const std::string raw = RandomBytes(3 << 20, 1);
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{raw.substr(0, 1 << 20), raw.substr(0, (2 << 20) - 1), "xy"}, "expected 1 to 1 bytes of the body"},
      {{""}, "found a message of 0 bytes"},
      {{raw + "x"}, "expected 1 to 3145728 bytes of the body"},
  };
  for (const auto& [bodies, text] : cases) {
    const std::unique_ptr<RawClient> client = OpenPut(save);
    client->Write(EncodeChunkFrame(7, InfoOf(raw)));
    for (const std::string& body : bodies) client->Write(body);
    ExpectEnds(client.get(), absl::StatusCode::kInvalidArgument, text);
    EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }));
  }
}

TEST_F(PutStreamTest, ClosingInTheMiddleOfAChunkIsAnError) {
  const std::unique_ptr<RawClient> client = OpenPut(Begin(1));
  client->Write(EncodeChunkFrame(7, InfoOf("hello")));
  client->Write("hel");
  client->WritesDone();
  ExpectEnds(client.get(), absl::StatusCode::kInvalidArgument, "expected 5 bytes, got 3");
}

TEST_F(PutStreamTest, AcksOfEarlierChunksStillComeBeforeTheEnd) {
  const std::unique_ptr<RawClient> client = OpenPut(Begin(1));
  client->WriteChunk(1, InfoOf("hello"), "hello");
  client->Write("garbage");
  const std::optional<Answer> ack = client->ReadAnswer();
  ASSERT_TRUE(ack);
  EXPECT_OK(ack->status);
  ExpectEnds(client.get(), absl::StatusCode::kInvalidArgument, "expected kChunk");
}

TEST_F(PutStreamTest, AStreamOfASaveThatEndsEndsToo) {
  const v1::SaveContext save = Begin(1);
  const std::unique_ptr<RawClient> client = OpenPut(save);
  client->WriteChunk(1, InfoOf("hello"), "hello");
  ASSERT_TRUE(client->ReadAnswer());
  v1::AbortSaveRequest abort;
  *abort.mutable_save() = save;
  abort.set_reason("the test says so");
  ASSERT_OK(Call(&v1::Coordinator::Stub::AbortSave, abort));
  // The save is looked at once a second.
  for (uint64_t tag = 2; client->WriteChunk(tag, InfoOf("hello"), "hello") && client->ReadAnswer(); ++tag) {
  }
  ExpectEnds(client.get(), absl::StatusCode::kAborted, "the test says so");
}

class SilentPutStream : public RpcTest {
 protected:
  SilentPutStream() {
    config_.rpc.idle_timeout_ms = 100;
    StartServer();
  }
};

TEST_F(SilentPutStream, IsEnded) {
  RawClient silent(channel_, kPutChunks);
  EXPECT_STATUS(silent.Finish(), absl::StatusCode::kDeadlineExceeded, "no message for 100 ms");
  const std::unique_ptr<RawClient> greeted = OpenPut(Begin(1));
  EXPECT_STATUS(greeted->Finish(), absl::StatusCode::kDeadlineExceeded, "no message for 100 ms");
}

class ImpatientPutStream : public RpcTest {
 protected:
  ImpatientPutStream() {
    config_.rpc.stalled_chunk_timeout_ms = 100;
    StartServer();
  }
};

TEST_F(ImpatientPutStream, HalfAChunkGivesItsMemoryBack) {
  const std::unique_ptr<RawClient> client = OpenPut(Begin(1));
  const std::string raw = RandomBytes(4 << 20, 1);
  client->Write(EncodeChunkFrame(7, InfoOf(raw)));
  client->Write(raw.substr(0, 1 << 20));
  EXPECT_STATUS(client->Finish(), absl::StatusCode::kDeadlineExceeded, "the rest of a chunk did not come");
  EXPECT_TRUE(Eventually([this] { return BufferBytesInUse() == 0; }));
}

TEST_F(ImpatientPutStream, ATrickleDoesNotKeepAChunksMemory) {
  const std::unique_ptr<RawClient> client = OpenPut(Begin(1));
  const std::string raw = RandomBytes(4 << 20, 1);
  client->Write(EncodeChunkFrame(7, InfoOf(raw)));
  for (size_t at = 0; at < raw.size() && client->Write(raw.substr(at, 1)); ++at) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_STATUS(client->Finish(), absl::StatusCode::kDeadlineExceeded, "the rest of a chunk did not come");
}

TEST_F(ImpatientPutStream, HungClientsDoNotKeepOthersOut) {
  const v1::SaveContext save = Begin(1);
  const std::string raw = RandomBytes(4 << 20, 1);
  // More half chunks than the pool has room for.
  std::vector<std::unique_ptr<RawClient>> hung;
  for (int i = 0; i < 12; ++i) {
    hung.push_back(OpenPut(save));
    hung.back()->Write(EncodeChunkFrame(7, InfoOf(raw)));
    hung.back()->Write(raw.substr(0, 100));
  }
  const TestPart part = MakePart(save, 8 << 20, 1);
  for (int attempt = 0; attempt < 3; ++attempt) {
    const std::unique_ptr<RawClient> client = OpenPut(save);
    bool all = true;
    for (size_t i = 0; all && i < part.infos.size(); ++i) {
      all = client->WriteChunk(i, part.infos[i], part.stored[i]) && client->ReadAnswer();
    }
    if (all) break;
  }
  EXPECT_OK(Seal(save, part));
}

}  // namespace
}  // namespace esker::testing
