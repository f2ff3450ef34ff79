// The protocol without libesker: for tests that need each call by itself, or a thousand ranks in a few
// threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/chunk_record.h"
#include "format/proto/service.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/sync_stream.h"

namespace esker::testing {

absl::Status FromGrpcStatus(const grpc::Status& status);

// One connection. Thread-safe.
class RawClient {
 public:
  explicit RawClient(const std::string& address);

  // One unary call: Call(&v1::Coordinator::Stub::OpenRun, request).
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&, Response*),
                                const Request& request, std::chrono::milliseconds timeout = kTimeout) {
    return CallOn(coordinator_.get(), method, request, timeout);
  }
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Store::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        Response*),
                                const Request& request, std::chrono::milliseconds timeout = kTimeout) {
    return CallOn(store_.get(), method, request, timeout);
  }

  absl::StatusOr<v1::StatusResponse> ServerStatus();
  // The next attempt if `incarnation` is new.
  absl::StatusOr<uint64_t> OpenRun(const std::string& run, const std::string& incarnation);
  // Committed checkpoints, or, with `all`, everything.
  absl::StatusOr<v1::ListCheckpointsResponse> List(const std::string& run, bool all);
  absl::Status Delete(const std::string& run, uint64_t step);
  absl::Status Pin(const std::string& run, uint64_t step, bool pinned);
  // Without a policy: just collects what is dead. Of all runs if none is named.
  absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(const v1::RetentionPolicy* policy = nullptr,
                                                            const std::string& run = "");

  // "PutChunks" or "GetChunks". Must not outlive `context`.
  using RawStream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  std::unique_ptr<RawStream> OpenStream(const std::string& call, grpc::ClientContext* context);

 private:
  static constexpr std::chrono::milliseconds kTimeout{30'000};

  template <typename Stub, typename Request, typename Response>
  static absl::StatusOr<Response> CallOn(Stub* stub,
                                         grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                      Response*),
                                         const Request& request, std::chrono::milliseconds timeout) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    Response response;
    const grpc::Status status = (stub->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Coordinator::Stub> coordinator_;
  const std::unique_ptr<v1::Store::Stub> store_;
};

grpc::ByteBuffer RawMessage(std::string_view bytes);

// One rank's part in one save, call by call. Its state is one U8 tensor, named after the rank. Not
// thread-safe.
class RawRank {
 public:
  // `client` must outlive it.
  RawRank(RawClient* client, std::string run, uint64_t attempt, uint32_t rank, uint32_t world_size);

  // BeginSave, for a state that holds `content`.
  absl::Status Begin(uint64_t step, std::string content);
  // Offers the chunks and sends those that the server lacks.
  absl::Status Upload();
  absl::StatusOr<v1::SealPartResponse> Seal();
  absl::StatusOr<v1::SaveStatus> Report();
  // How the save is, at the latest after the timeout.
  absl::StatusOr<v1::SaveStatus> Await(uint32_t timeout_ms);
  // All of them but Await.
  absl::Status Save(uint64_t step, std::string content);

  const v1::SaveContext& context() const { return context_; }
  const std::vector<ChunkInfo>& chunks() const { return chunks_; }

 private:
  absl::Status SendChunks(const std::string& missing);
  std::string_view ChunkBytes(size_t index) const;

  RawClient* const client_;
  const uint32_t world_size_;
  v1::SaveContext context_;
  std::string content_;
  std::string layout_envelope_;
  std::string part_envelope_;
  std::vector<ChunkInfo> chunks_;
  v1::SealPartResponse sealed_;
};

}  // namespace esker::testing
