// Handing snapshots over to a server on this host: it finishes a save from the memory that the snapshot lies
// in, even if this process dies.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/deadline.h"
#include "client/snapshot.h"
#include "client/staging_arena.h"
#include "esker/checkpointer.h"
#include "format/base/unix_socket.h"
#include "format/proto/local.pb.h"

namespace esker {

// Used by one thread at a time. One save at a time.
class ArenaSender {
 public:
  // `connection` must outlive it.
  ArenaSender(Connection* connection, Transport transport);

  // Asks the server whether it is on this host. An error only if the memory must be shared and can't be.
  absl::Status Find(const Deadline& deadline);
  // Whether sharing memory with the server may work, now or later: then snapshots go into shareable blocks.
  bool MayShare() const { return may_share_; }
  bool must_share() const { return transport_ == Transport::kSharedMemory; }
  // Whether an attempt to connect is worth a moment of the training loop: the last one, if any, went well.
  bool LooksWell() const { return may_share_ && !connect_failed_; }

  // Makes the block known to the server, unless it is. Blocks for a second at most.
  absl::Status Connect(const std::shared_ptr<StagingBlock>& block);

  // Begins to hand a save over; connects first, if need be. `save` is put behind the snapshot's records.
  absl::Status Start(const Snapshot& snapshot, const v1::ArenaSave& save);
  // So many of its chunks, from the first one on, are in the block, and nobody changes them until the answer
  // that ends the save. If these are all and it returns OK, the server gets the save, whatever happens to
  // this process. Errors as Start's.
  absl::Status Ready(size_t chunks);
  // Waits until the server has said something of the save that was started, or is gone; a second at most.
  // Until then the death of this process may come before it: the next start of the job could go on without
  // the save.
  bool AwaitTaken() const;

  // The server's next answer about the save that was started. After `sealed` and `failed` the block is this
  // process's again. kUnavailable if the server is gone: likewise. kDeadlineExceeded: the server may still
  // read the block, which is given up (StagingBlock::Abandon).
  absl::StatusOr<v1::LocalAnswer> Next(const Deadline& deadline);

  // A save's payload begins to go through gRPC: logs why, once, if it might have been shared.
  void TellWhyNot() const;
  // Sharing memory is no use with this server: once and for all.
  void RuleOut(const absl::Status& why);
  // Lets the block go. Not while a save is under way.
  void Disconnect();

 private:
  absl::Status ConnectFailed(const absl::Status& status);
  absl::Status Send(const v1::LocalRequest& request);

  Connection* const connection_;
  const Transport transport_;
  bool may_share_;
  bool connect_failed_ = false;
  bool was_connected_ = false;
  absl::Status why_not_;                    // the last thing that went wrong
  std::shared_ptr<StagingBlock> block_;     // the one that the server knows, by
  std::optional<UnixSocket> socket_;        // this connection
  std::shared_ptr<const void> block_view_;  // while a save is under way
};

}  // namespace esker
