// The catalog's records as messages (format/proto/catalog.proto), each in its envelope under its key
// (format/names.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/proto/catalog.pb.h"
#include "server/catalog/catalog.h"

namespace esker {

// How often a change that lost a race is tried again before the caller gets kUnavailable. Each loss means
// that another change went through, so only a fault comes here.
inline constexpr int kMaxLostRaces = 1000;
absl::Status LostTooManyRaces(const std::string& what);

// A record as it was read, and what a change of it is conditioned on.
template <typename Record>
struct Stored {
  std::string key;
  uint64_t version = 0;  // 0: there is none, and `record` is empty
  Record record;

  bool exists() const { return version != 0; }
};
using StoredRun = Stored<v1::RunRecord>;
using StoredSave = Stored<v1::SaveRecord>;
using StoredCheckpoint = Stored<v1::CheckpointRecord>;

// One compare-and-set in the making.
class CatalogChange {
 public:
  // The record must still be as it was read; also if it was absent.
  template <typename Record>
  CatalogChange& If(const Stored<Record>& seen) {
    conditions_.push_back({seen.key, seen.version});
    return *this;
  }
  CatalogChange& Put(const v1::RunRecord& record);
  CatalogChange& Put(const v1::SaveRecord& record);
  CatalogChange& Put(const v1::CheckpointRecord& record);
  template <typename Record>
  CatalogChange& Remove(const Stored<Record>& seen) {
    mutations_.push_back({seen.key, std::nullopt});
    return *this;
  }

 private:
  friend class CatalogRecords;
  std::vector<CatalogCondition> conditions_;
  std::vector<CatalogMutation> mutations_;
};

// Thread-safe. A record that is damaged, or that stands under another's key, is kDataLoss.
class CatalogRecords {
 public:
  // `catalog` must outlive this.
  explicit CatalogRecords(Catalog* catalog) : catalog_(catalog) {}

  absl::StatusOr<StoredRun> Run(const std::string& run) const;
  absl::StatusOr<StoredSave> Save(const std::string& run, uint64_t step) const;
  absl::StatusOr<StoredCheckpoint> Checkpoint(const std::string& run, uint64_t step) const;

  // Sorted by name, or by step.
  absl::StatusOr<std::vector<StoredRun>> Runs() const;
  absl::StatusOr<std::vector<StoredSave>> Saves(const std::string& run) const;
  absl::StatusOr<std::vector<StoredCheckpoint>> Checkpoints(const std::string& run) const;
  // The one with the highest step of those in state COMMITTED; may not exist.
  absl::StatusOr<StoredCheckpoint> LatestCommitted(const std::string& run) const;

  // False if a condition did not hold. After an error the change may have been applied or not.
  absl::StatusOr<bool> Apply(const CatalogChange& change) const;

 private:
  Catalog* const catalog_;
};

}  // namespace esker
