#include "server/coordinator/catalog_records.h"

#include <optional>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/names.h"

namespace esker {
namespace {

EnvelopeKind KindOf(const v1::RunRecord&) { return EnvelopeKind::kRun; }
EnvelopeKind KindOf(const v1::SaveRecord&) { return EnvelopeKind::kSave; }
EnvelopeKind KindOf(const v1::CheckpointRecord&) { return EnvelopeKind::kCheckpoint; }

std::string KeyOf(const v1::RunRecord& record) { return RunKey(record.run()); }
std::string KeyOf(const v1::SaveRecord& record) { return SaveKey(record.run(), record.step()); }
std::string KeyOf(const v1::CheckpointRecord& record) { return CheckpointKey(record.run(), record.step()); }

template <typename Record>
CatalogMutation PutMutation(const Record& record) {
  return {KeyOf(record), EncodeEnvelope(KindOf(record), record)};
}

template <typename Record>
absl::StatusOr<Stored<Record>> Decode(CatalogEntry entry) {
  absl::StatusOr<Record> record = DecodeEnvelope<Record>(KindOf(Record()), entry.value);
  if (!record.ok()) return Annotate(record.status(), StrCat("catalog entry \"", entry.key, "\""));
  if (KeyOf(*record) != entry.key) {
    return absl::DataLossError(
        StrCat("catalog entry \"", entry.key, "\" holds the record of \"", KeyOf(*record), "\""));
  }
  return Stored<Record>{std::move(entry.key), entry.version, *std::move(record)};
}

template <typename Record>
absl::StatusOr<Stored<Record>> Read(const Catalog& catalog, std::string key) {
  ESKER_ASSIGN_OR_RETURN(std::optional<CatalogEntry> entry, catalog.Get(key));
  if (!entry.has_value()) return Stored<Record>{std::move(key), 0, Record()};
  return Decode<Record>(*std::move(entry));
}

template <typename Record>
absl::StatusOr<std::vector<Stored<Record>>> ReadAll(const Catalog& catalog, std::string_view prefix) {
  ESKER_ASSIGN_OR_RETURN(std::vector<CatalogEntry> entries, catalog.List(prefix));
  std::vector<Stored<Record>> records;
  records.reserve(entries.size());
  for (CatalogEntry& entry : entries) {
    ESKER_ASSIGN_OR_RETURN(Stored<Record> record, Decode<Record>(std::move(entry)));
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace

absl::Status LostTooManyRaces(const std::string& what) {
  return absl::UnavailableError(
      StrCat(what, ": the catalog changed underneath ", kMaxLostRaces, " times in a row; try again"));
}

CatalogChange& CatalogChange::Put(const v1::RunRecord& record) {
  mutations_.push_back(PutMutation(record));
  return *this;
}
CatalogChange& CatalogChange::Put(const v1::SaveRecord& record) {
  mutations_.push_back(PutMutation(record));
  return *this;
}
CatalogChange& CatalogChange::Put(const v1::CheckpointRecord& record) {
  mutations_.push_back(PutMutation(record));
  return *this;
}

absl::StatusOr<StoredRun> CatalogRecords::Run(const std::string& run) const {
  return Read<v1::RunRecord>(*catalog_, RunKey(run));
}
absl::StatusOr<StoredSave> CatalogRecords::Save(const std::string& run, uint64_t step) const {
  return Read<v1::SaveRecord>(*catalog_, SaveKey(run, step));
}
absl::StatusOr<StoredCheckpoint> CatalogRecords::Checkpoint(const std::string& run, uint64_t step) const {
  return Read<v1::CheckpointRecord>(*catalog_, CheckpointKey(run, step));
}

absl::StatusOr<std::vector<StoredRun>> CatalogRecords::Runs() const {
  return ReadAll<v1::RunRecord>(*catalog_, kRunPrefix);
}
absl::StatusOr<std::vector<StoredSave>> CatalogRecords::Saves(const std::string& run) const {
  return ReadAll<v1::SaveRecord>(*catalog_, SavePrefix(run));
}
absl::StatusOr<std::vector<StoredCheckpoint>> CatalogRecords::Checkpoints(const std::string& run) const {
  return ReadAll<v1::CheckpointRecord>(*catalog_, CheckpointPrefix(run));
}

absl::StatusOr<StoredCheckpoint> CatalogRecords::LatestCommitted(const std::string& run) const {
  ESKER_ASSIGN_OR_RETURN(std::vector<CatalogEntry> entries, catalog_->List(CheckpointPrefix(run)));
  // Only what is looked at is decoded: every rank of a starting job asks.
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    ESKER_ASSIGN_OR_RETURN(StoredCheckpoint checkpoint, Decode<v1::CheckpointRecord>(std::move(*entry)));
    if (checkpoint.record.state() == v1::CheckpointRecord::COMMITTED) return checkpoint;
  }
  return StoredCheckpoint();
}

absl::StatusOr<bool> CatalogRecords::Apply(const CatalogChange& change) const {
  return catalog_->CompareAndSet(change.conditions_, change.mutations_);
}

}  // namespace esker
