#include "client/chunk_stream.h"

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/connection.h"
#include "client/put_stream.h"
#include "client/staging_arena.h"
#include "format/frame.h"
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class ChunkStreamTest : public ::testing::Test {
 protected:
  ChunkStreamTest() : connection_(*Connection::Make(server_.address())) {}

  ChunkStream Open(const std::string& call, uint64_t timeout_ms = 60'000) {
    return ChunkStream(connection_->DataChannel(0), server_.address(), call, Deadline::After(timeout_ms));
  }

  // Begins a save, so that chunks may be put.
  v1::SaveContext BeginSave() {
    v1::OpenRunRequest open;
    open.set_run("r");
    open.set_incarnation("i");
    EXPECT_OK(connection_->Call("OpenRun", &v1::Coordinator::Stub::OpenRun, open, Deadline::After(60'000)));
    v1::BeginSaveRequest begin;
    begin.set_run("r");
    begin.set_attempt(1);
    begin.set_world_size(1);
    const auto begun =
        connection_->Call("BeginSave", &v1::Coordinator::Stub::BeginSave, begin, Deadline::After(60'000));
    v1::SaveContext save;
    save.set_run("r");
    save.set_attempt(1);
    save.set_save_id(begun->save_id());
    return save;
  }

  FakeServer server_;
  const std::shared_ptr<Connection> connection_;
};

TEST_F(ChunkStreamTest, ErrorsNameServerAndCall) {
  ChunkStream stream = Open("PutChunks");
  ASSERT_OK(stream.Write(CopyOf("no hello")));
  const absl::Status status = stream.Read(Deadline::After(60'000)).status();
  EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, server_.address());
  EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, "PutChunks");
  // Broken for good, and it says the same again.
  EXPECT_STATUS(stream.Write(CopyOf("x")), absl::StatusCode::kInvalidArgument, "PutChunks");
  EXPECT_STATUS(stream.Finish(), absl::StatusCode::kInvalidArgument, "PutChunks");
}

TEST_F(ChunkStreamTest, UnknownCallSaysWhatToCheck) {
  ChunkStream stream = Open("NoSuchCall");
  EXPECT_STATUS(stream.Read(Deadline::After(60'000)), absl::StatusCode::kUnimplemented,
                "eskerd of this version");
}

TEST_F(ChunkStreamTest, AnEndedStreamIsUnavailable) {
  ChunkStream stream = Open("PutChunks");
  EXPECT_OK(stream.Finish());
  EXPECT_STATUS(stream.Read(Deadline::After(60'000)), absl::StatusCode::kUnavailable, "ended the stream");
}

TEST_F(ChunkStreamTest, AReadThatRunsOutLeavesTheStreamWhole) {
  PutStream stream(connection_->DataChannel(0), server_.address(), BeginSave(), kFrameBodyBytes,
                   Deadline::After(60'000));
  const std::string bytes = "bytes";
  ChunkInfo info;
  info.hash = HashOf(AsBytes(bytes));
  info.raw_bytes = info.stored_bytes = bytes.size();
  info.stored_crc32c = Crc32c(AsBytes(bytes));
  server_.Stall(Rpc::kPutChunk);
  ASSERT_OK(stream.Send(3, info, AsBytes(bytes), nullptr));
  EXPECT_EQ(stream.unacknowledged_bytes(), 5u);
  const absl::StatusOr<std::optional<PutAck>> none = stream.TakeAck(/*wait=*/false);
  ASSERT_OK(none);
  EXPECT_FALSE(none->has_value());
  server_.Unstall();
  const absl::StatusOr<std::optional<PutAck>> ack = stream.TakeAck(/*wait=*/true);
  ASSERT_OK(ack);
  EXPECT_EQ((*ack)->tag, 3u);
  EXPECT_OK((*ack)->status);
  EXPECT_EQ(stream.unacknowledged_bytes(), 0u);
  EXPECT_OK(stream.Finish());
}

TEST_F(ChunkStreamTest, TheRpcsDeadlineEndsEveryCall) {
  server_.Stall(Rpc::kPutChunk);
  PutStream stream(connection_->DataChannel(0), server_.address(), BeginSave(), kFrameBodyBytes,
                   Deadline::After(100));
  const std::string bytes = "bytes";
  ChunkInfo info;
  info.hash = HashOf(AsBytes(bytes));
  info.raw_bytes = info.stored_bytes = bytes.size();
  info.stored_crc32c = Crc32c(AsBytes(bytes));
  ASSERT_OK(stream.Send(1, info, AsBytes(bytes), nullptr));
  EXPECT_STATUS(stream.TakeAck(/*wait=*/true), absl::StatusCode::kDeadlineExceeded, "PutChunks");
}

TEST_F(ChunkStreamTest, CancelFromAnotherThreadEndsAWait) {
  ChunkStream stream = Open("PutChunks");
  std::thread cancels([&] { stream.Cancel(); });
  EXPECT_STATUS(stream.Read(Deadline::After(60'000)), absl::StatusCode::kCancelled, "PutChunks");
  cancels.join();
}

// What the arena's safety stands on: a stream that does not get rid of its messages, because the server takes
// none, drops them when the stream and its channel are gone.
TEST_F(ChunkStreamTest, ViewsEndWithStreamAndChannel) {
  constexpr uint64_t kBytes = 64 << 20;
  ASSERT_OK_AND_ASSIGN(const auto block, StagingBlock::Map(kBytes, false));
  server_.Stall(Rpc::kPutChunk);
  const v1::SaveContext save = BeginSave();
  {
    PutStream stream(connection_->DataChannel(0), server_.address(), save, kFrameBodyBytes,
                     Deadline::After(2'000));
    absl::Status status;
    for (uint64_t at = 0; status.ok(); at = (at + kMaxChunkBytes) % kBytes) {
      const ByteView bytes(block->data() + at, kMaxChunkBytes);
      ChunkInfo info;
      info.hash = HashOf(bytes);
      info.raw_bytes = info.stored_bytes = bytes.size();
      info.stored_crc32c = Crc32c(bytes);
      status = stream.Send(at, info, bytes, block->View());
    }
    EXPECT_STATUS(status, absl::StatusCode::kDeadlineExceeded, "PutChunks");
  }
  connection_->Reset();
  EXPECT_TRUE(block->AwaitNoViews(30'000));
}

}  // namespace
}  // namespace esker::testing
