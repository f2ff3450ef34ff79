// One save of one rank's part, from the snapshot to the commit, through restarts of the server.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "client/arena_sender.h"
#include "client/connection.h"
#include "client/save_state.h"
#include "client/snapshot.h"
#include "client/uploader.h"
#include "format/base/thread_pool.h"
#include "format/proto/local.pb.h"
#include "format/proto/service.pb.h"

namespace esker {

struct PartSenderOptions {
  std::string run;
  uint64_t attempt = 0;
  uint64_t step = 0;
  uint32_t rank = 0;
  uint32_t world_size = 1;
  UploadOptions upload;
  uint64_t timeout_ms = 600'000;
};

// What a rank remembers from save to save.
struct SaveHistory {
  explicit SaveHistory(int workers) : codec_chooser(workers) {}

  // Layouts that the server is known to hold: a save of the same topology does not send one again.
  absl::flat_hash_set<Hash128> known_layouts;
  // The chunks of the last part that was sealed, to tell how much of the next one is unchanged.
  absl::flat_hash_set<Hash128> last_chunks;
  CodecChooser codec_chooser;
};

// Used by one thread, once.
//
// BeginSave, then Upload, SealPart, ReportPart and WaitSave; a server on this host does all but the last of
// them itself, from the snapshot's memory. After an error that may pass, it connects anew,
// asks how the save stands, and goes on from the last thing that is known to be durable: a sealed part is
// only reported again, anything before that is offered again.
class PartSender {
 public:
  // All must outlive the sender. `on_sealed` is called once the part is durable: the snapshot's bytes are not
  // read any more.
  PartSender(const Snapshot* snapshot, const PartSenderOptions& options, Connection* connection,
             ArenaSender* arena, ThreadPool* pool, SaveHistory* history, SaveCounters* counters,
             std::function<void()> on_sealed);

  // Announces the save to a server on this host, if there is one, before the snapshot is copied; a second at
  // most if the server hangs. Then, whether or not there is one, Ready says how many chunks are copied: with
  // all of them the save is the server's, once it has taken it: AwaitTaken, a second at most as well. Then it
  // needs this process no more. Run takes the answers.
  void Announce();
  void Ready(size_t chunks);
  void AwaitTaken();

  // Blocks until the checkpoint is committed, or the save has failed for good; then the server was told, if
  // it can be told at all. Takes at most timeout_ms, and a few seconds. Afterwards nothing of this save is on
  // its way, except what a broken connection may not have dropped yet: that holds views of the snapshot's
  // block.
  absl::Status Run();

  // After a Run that returned OK: whether the part is stored as a delta of its snapshot's base. It is not if
  // the server does not have that, or there is none; or if nobody told.
  bool StoredAsDelta() const;
  // Likewise: all chunks' hashes in order; none if the server hashed them itself.
  std::vector<Hash128> Hashes() const;

 private:
  absl::Status RunAttempts();
  absl::Status Attempt();
  // Whether the save that this one began is still under way, after the connection was lost.
  absl::Status CheckStillOpen(const Deadline& deadline);
  // Brings the part to the server and seals it.
  absl::Status Deliver();
  v1::ArenaSave DescribeForArena() const;
  absl::Status DeliverThroughArena();
  void Count(const v1::LocalProgress& progress);
  absl::Status DeliverThroughGrpc();
  absl::Status Begin();
  absl::Status Begun(uint64_t save_id);
  absl::Status Seal();
  absl::StatusOr<v1::SealPartResponse> CallSeal(const std::string& part_envelope);
  absl::Status Report();
  absl::Status AwaitCommit();
  // Sets committed_ and ended_by_server_ if the save has ended; an error if it ended without a checkpoint.
  absl::Status TakeStatus(const v1::SaveStatus& status);
  // Tells the other ranks that this one can't go on. Returns OK if it turns out that the checkpoint was
  // committed.
  absl::Status Abort(const absl::Status& why);
  // The part is durable: what is to be reported of it.
  void Sealed(const v1::PartEntry& entry, const v1::ServerInfo& server);
  void CountUnchanged(const std::vector<Hash128>& hashes);
  Deadline CallDeadline() const;

  const Snapshot* const snapshot_;
  const PartSenderOptions options_;
  Connection* const connection_;
  ArenaSender* const arena_;
  SaveHistory* const history_;
  SaveCounters* const counters_;
  const std::function<void()> on_sealed_;
  const Deadline deadline_;
  Uploader uploader_;

  v1::SaveContext save_;
  bool handed_over_ = false;  // and its answers not yet taken
  bool begun_ = false;
  bool ended_by_server_ = false;  // committed or aborted, as the server said: there is nothing to abort
  bool committed_ = false;
  std::optional<v1::ReportPartRequest> report_;  // since the part is sealed
};

}  // namespace esker
