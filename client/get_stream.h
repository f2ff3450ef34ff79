// Fetching chunks of one checkpoint: Store.GetChunks, from the client's side.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/chunk_source.h"
#include "client/chunk_stream.h"
#include "grpcpp/channel.h"

namespace esker {

class GetStream final : public ChunkSource {
 public:
  GetStream(std::shared_ptr<grpc::Channel> channel, const std::string& server, uint64_t lease_id);

  Transport transport() const override { return Transport::kGrpc; }
  absl::Status Want(uint64_t tag, const Hash128& hash) override;
  // The answer to the oldest want.
  absl::StatusOr<FetchedChunk> Next(uint64_t silence_ms) override;
  void Cancel() override { stream_.Cancel(); }

 private:
  absl::Status ReadBody(FetchedChunk* chunk, uint64_t silence_ms);
  absl::Status Nonsense(std::string_view what) const;

  const std::string server_;
  const std::string hello_;
  bool greeted_ = false;
  std::deque<uint64_t> wanted_;
  ChunkStream stream_;
};

}  // namespace esker
