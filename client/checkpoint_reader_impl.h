// CheckpointReader's inside.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/checkpoint_metadata.h"
#include "client/connection.h"
#include "client/read_lease.h"
#include "client/restore_plan.h"
#include "esker/reader.h"
#include "format/base/mutex.h"
#include "format/shard_index.h"

namespace esker {

// Thread-safe, as CheckpointReader.
class CheckpointReader::Impl {
 public:
  Impl(std::shared_ptr<Connection> connection, std::unique_ptr<ReadLease> lease,
       std::unique_ptr<CheckpointMetadata> metadata, uint64_t timeout_ms, int threads, Transport transport);

  const CheckpointInfo& info() const { return info_; }
  absl::StatusOr<std::vector<TensorInfo>> Tensors();
  absl::StatusOr<std::vector<TensorBox>> StoredBy(uint32_t rank);
  absl::StatusOr<std::vector<ItemInfo>> Items();
  absl::Status Restore(const RestoreRequest& request);
  Transport transport() const;
  absl::StatusOr<std::string> ReadItem(uint32_t rank, const std::string& name);

 private:
  using Index = std::shared_ptr<const ShardIndex>;
  struct Piece {
    size_t target;
    PlannedRead read;
  };

  std::vector<uint32_t> AllRanks() const;
  // Of the layouts of these ranks.
  absl::StatusOr<Index> MakeIndex(const std::vector<uint32_t>& ranks);
  // Made when first asked for, then kept.
  absl::StatusOr<Index> RankIndex(uint32_t rank);
  absl::StatusOr<Index> FullIndex();

  // Where to take every wanted box from. kNotFound or kDataLoss if the index lacks some of it.
  absl::StatusOr<std::vector<Piece>> Plan(const ShardIndex& index, const RestoreRequest& request) const;
  absl::Status NoSuchTensor(const ShardIndex& index, const std::string& name) const;
  // Adds the pieces to the plan, with the parts that they lie in, and carries it out.
  absl::Status Fetch(RestorePlan* plan, const std::vector<Piece>& pieces, const ProgressCallback& progress);

  const std::shared_ptr<Connection> connection_;
  const std::unique_ptr<ReadLease> lease_;
  const std::unique_ptr<CheckpointMetadata> metadata_;
  const uint64_t timeout_ms_;
  const int threads_;
  const Transport transport_;
  const CheckpointInfo info_;

  mutable Mutex mu_;
  Transport came_by_ ABSL_GUARDED_BY(mu_) = Transport::kAuto;  // what the last Restore fetched
  Index full_index_ ABSL_GUARDED_BY(mu_);
  Index rank_index_ ABSL_GUARDED_BY(mu_);  // of the rank that was asked for last
  uint32_t indexed_rank_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace esker
