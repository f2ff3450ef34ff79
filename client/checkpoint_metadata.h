// The metadata of one committed checkpoint, fetched as it is needed and checked before it is believed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "format/base/mutex.h"
#include "format/hash.h"
#include "format/layout.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/service.pb.h"

namespace esker {

// Thread-safe. Everything is kept once it was fetched. kDataLoss names run, step and rank where something is
// not what it should be: each envelope must have the digest that whatever refers to it says, and each message
// the identity of this checkpoint.
class CheckpointMetadata {
 public:
  // `timeout_ms`: how long to try to reach the server, for each call.
  CheckpointMetadata(std::shared_ptr<Connection> connection, v1::CheckpointRecord record,
                     uint64_t timeout_ms);

  const v1::CheckpointRecord& record() const { return record_; }
  // "run r, step s".
  const std::string& label() const { return label_; }

  // Takes over entries that came with the record.
  absl::Status AddEntries(const v1::GetCheckpointResponse& response);
  // Fetches the manifest, and with it every rank's entry.
  absl::Status LoadManifest();

  // In the order of `ranks`. Costs a few messages for a thousand ranks, whatever the world size.
  // kInvalidArgument if there is no such rank.
  absl::StatusOr<std::vector<std::shared_ptr<const v1::Layout>>> Layouts(const std::vector<uint32_t>& ranks);
  absl::StatusOr<std::vector<std::shared_ptr<const PartMap>>> Parts(const std::vector<uint32_t>& ranks);

 private:
  absl::Status LoadEntries(const std::vector<uint32_t>& ranks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status LoadWholeManifest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status LoadLayouts(const std::vector<uint32_t>& ranks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status LoadParts(const std::vector<uint32_t>& ranks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AddEntry(const v1::PartEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AddLayout(const Hash128& digest, const std::string& envelope)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AddPart(uint32_t rank, const std::string& envelope) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<v1::GetCheckpointResponse> GetCheckpoint(const std::vector<uint32_t>& ranks);
  absl::Status CheckRecord(const v1::CheckpointRecord& record) const;
  absl::Status Damaged(std::string_view what) const;

  struct Entry {
    Hash128 part_digest;
    Hash128 layout_digest;
  };

  const std::shared_ptr<Connection> connection_;
  const v1::CheckpointRecord record_;
  const uint64_t timeout_ms_;
  const std::string label_;

  // Held while something is fetched: what two threads need is fetched once.
  Mutex mu_;
  bool has_manifest_ ABSL_GUARDED_BY(mu_) = false;
  absl::flat_hash_map<uint32_t, Entry> entries_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Hash128, std::shared_ptr<const v1::Layout>> layouts_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint32_t, std::shared_ptr<const PartMap>> parts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
