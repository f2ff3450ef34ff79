// PutChunks: takes the chunks of one part. Frames: format/frame.h.
#pragma once

#include <cstdint>
#include <optional>
#include <set>

#include "format/chunk_record.h"
#include "server/rpc/raw_stream.h"
#include "server/store/store.h"

namespace esker {

// A chunk's way: its head is checked, a buffer of the pool is awaited (no thread waits), each body message is
// copied to where the record's payload lies and its CRC-32C taken in the same pass, the store writes it, the
// client gets its kAck. At most kMaxPutsInFlight chunks at a time; the client is not read from meanwhile.
class PutStream final : public RawStream {
 public:
  PutStream(RpcBackend* backend, grpc::CallbackServerContext* context);

 private:
  enum class Expecting { kHello, kHead, kBody };

  void OnMessage(grpc::ByteBuffer* message) override;
  std::optional<absl::Status> OnLastMessage(bool by_client) override;
  bool HeldTooLong(int64_t) override { return false; }  // its answers are small, and hold nothing
  void Withdraw() override {}

  void TakeHello(grpc::ByteBuffer* message);
  void TakeHead(grpc::ByteBuffer* message);
  // Returns whether the chunk is complete.
  absl::StatusOr<bool> TakeBody(grpc::ByteBuffer* message);
  void Fail(const absl::Status& status);

  void AwaitBuffer();
  void OnBuffer();
  void FinishChunk();
  void PutChunk(uint64_t tag, const ChunkInfo& info, Buffer record);
  void Acknowledge(uint64_t tag, const absl::Status& status);
  // Asks the coordinator again whether the save is still open, at most once a second.
  absl::Status CheckSaveNowAndThen();

  // These belong to whoever handles the current message.
  Expecting expecting_ = Expecting::kHello;
  v1::SaveContext save_;
  PartRef part_;
  // Of the chunk that is coming in.
  uint64_t tag_ = 0;
  ChunkInfo info_;
  Buffer record_;
  uint64_t received_bytes_ = 0;
  uint32_t crc_ = 0;
  int64_t chunk_deadline_ms_ = 0;

  // Taken before the stream's lock.
  Mutex puts_mu_;
  std::set<uint64_t> tags_in_flight_ ABSL_GUARDED_BY(puts_mu_);
  bool paused_ ABSL_GUARDED_BY(puts_mu_) = false;  // reading goes on when a chunk is done
  int64_t save_checked_ms_ ABSL_GUARDED_BY(puts_mu_) = 0;
};

}  // namespace esker
