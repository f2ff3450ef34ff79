// A whole server in the test's process, with a small buffer pool, and what a client needs to talk to it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/proto/service.grpc.pb.h"
#include "server/server.h"
#include "tests/server/rpc/raw_client.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {

// What a rank saves: one tensor of random bytes.
struct TestPart {
  std::string part_envelope;
  std::string layout_envelope;
  std::string layout_digest;
  std::vector<ChunkInfo> infos;     // by chunk
  std::vector<std::string> stored;  // likewise
};
// `save` names the part. Chunks of 1 MiB at most.
TestPart MakePart(const v1::SaveContext& save, uint64_t bytes, uint64_t seed);

std::string Bytes(const Hash128& hash);
// The body of a chunk that is named by its content, stored raw.
ChunkInfo InfoOf(const std::string& raw);
std::string RandomBytes(size_t bytes, uint64_t seed);

class RpcTest : public ::testing::Test {
 protected:
  RpcTest();
  void TearDown() override;

  // Opens the server with config_, and a channel to it.
  void StartServer();
  void StopServer();

  // Calls a method of a stub: Call(&Stub::Method, request), with a deadline of a minute.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const std::type_identity_t<Request>& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    Response response;
    const grpc::Status status = (StubOf<Stub>()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  // Opens the run with this incarnation and begins a save; fails the test if it is refused.
  v1::SaveContext Begin(uint64_t step, uint32_t rank = 0, uint32_t world_size = 1,
                        const std::string& incarnation = "first");
  // Sends all of a part's chunks on a stream of its own, whether the server has them or not.
  void Put(const v1::SaveContext& save, const TestPart& part);
  absl::StatusOr<v1::SealPartResponse> Seal(const v1::SaveContext& save, const TestPart& part);
  // Reports a sealed part.
  absl::StatusOr<v1::ReportPartResponse> Report(const v1::SaveContext& save,
                                                const v1::SealPartResponse& sealed);
  // All of the above for a world of one rank: the checkpoint is committed.
  v1::SaveContext SaveAll(uint64_t step, uint64_t bytes, uint64_t seed, TestPart* part = nullptr);
  // A lease on a committed checkpoint.
  uint64_t OpenRead(const v1::SaveContext& save);

  // An open PutChunks stream that was greeted.
  std::unique_ptr<RawClient> OpenPut(const v1::SaveContext& save);
  std::unique_ptr<RawClient> OpenGet(uint64_t lease_id);

  uint64_t BufferBytesInUse() { return server_->store()->buffers()->in_use_bytes(); }
  // Waits, at most a minute, until it holds.
  static bool Eventually(const std::function<bool()>& holds);

  const TempDir directory_;
  ServerConfig config_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Coordinator::Stub> coordinator_;
  std::unique_ptr<v1::Store::Stub> store_;

 private:
  template <typename Stub>
  Stub* StubOf() {
    if constexpr (std::is_same_v<Stub, v1::Store::Stub>) {
      return store_.get();
    } else {
      return coordinator_.get();
    }
  }
};

inline constexpr const char* kRun = "llama";

}  // namespace esker::testing
