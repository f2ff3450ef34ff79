// VerifyParts: reads every chunk of a checkpoint's parts, decodes it and compares its content with its name.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "format/layout.h"
#include "format/proto/service.pb.h"
#include "server/rpc/backend.h"
#include "server/rpc/call_watch.h"
#include "server/store/chunk_reader.h"

namespace esker {

// A few chunks at a time; a message when 64 chunks or half a second have passed. Holds a read lease of its
// own, so that garbage collection can't be mistaken for damage. Destroys itself when gRPC is done with it.
class VerifyCall final : public grpc::ServerWriteReactor<v1::VerifyPartsProgress>, public WatchedCall {
 public:
  VerifyCall(RpcBackend* backend, grpc::CallbackServerContext* context,
             const v1::VerifyPartsRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnTick(int64_t now_ms, bool draining) override;

 private:
  // One chunk that is being verified.
  struct Task {
    uint32_t rank = 0;
    uint32_t index = 0;
    PartChunk chunk;
  };
  using Scratch = std::vector<std::byte>;

  ~VerifyCall() override;

  // --- on the threads of `calls`, which may block ---
  // Opens the lease, finds the parts and counts their chunks.
  void Plan();
  absl::Status OpenLease();
  absl::Status CountChunks(const std::vector<uint32_t>& ranks);
  void LoadPart(uint32_t rank);
  absl::StatusOr<std::vector<PartChunk>> ReadPartChunks(uint32_t rank) const;
  void Check(const Task& task, const HeldChunkOr& held);
  absl::Status CheckContent(const PartChunk& chunk, const HeldChunk& held);
  void RenewNowAndThen();

  // Starts what there is room for.
  void PumpLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartChunkLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartLoadLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteIfDueLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends the status once everything else is over. The call may be gone as soon as mu_ is free.
  void FinishIfOverLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The end of each piece of work: goes on, or finishes.
  void GoOnLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  v1::ChunkFault DescribeFault(const Task& task, const absl::Status& error) const;
  bool ended() const;
  int64_t NowMillis() const { return backend_->watch.NowMillis(); }

  RpcBackend* const backend_;
  grpc::CallbackServerContext* const context_;
  const v1::VerifyPartsRequest request_;
  const SaveRef save_;
  uint64_t lease_id_ = 0;             // constant after Plan
  bool has_lease_ = false;            // likewise
  v1::VerifyPartsProgress outgoing_;  // gRPC's while writing_

  // Taken after the watch's lock, before the buffer pool's.
  mutable Mutex mu_;
  std::deque<uint32_t> ranks_ ABSL_GUARDED_BY(mu_);     // whose parts are not yet loaded
  std::vector<PartChunk> chunks_ ABSL_GUARDED_BY(mu_);  // of the part that is being verified
  uint32_t rank_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t next_chunk_ ABSL_GUARDED_BY(mu_) = 0;
  bool planned_ ABSL_GUARDED_BY(mu_) = false;
  bool loading_ ABSL_GUARDED_BY(mu_) = false;
  int chunks_in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::unique_ptr<Scratch>> scratch_ ABSL_GUARDED_BY(mu_);
  v1::VerifyPartsProgress progress_ ABSL_GUARDED_BY(mu_);  // its faults are those not yet sent
  uint64_t sent_chunks_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t sent_ms_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t renewed_ms_ ABSL_GUARDED_BY(mu_) = 0;
  int work_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  int64_t write_deadline_ms_ ABSL_GUARDED_BY(mu_) = 0;
  bool last_sent_ ABSL_GUARDED_BY(mu_) = false;  // the message with the final figures
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace esker
