#include "server/store/index.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

enum Family : uint32_t {
  kDefault,
  kChunks,
  kPlaces,
  kUnreferenced,
  kParts,
  kPartEnvelopes,
  kLayouts,
  kLayoutRefs,
  kManifests,
  kMeta,
  kFamilies,
};
constexpr std::array<const char*, kFamilies> kFamilyNames = {
    "default",        "chunks",  "places",      "unreferenced", "parts",
    "part_envelopes", "layouts", "layout_refs", "manifests",    "meta"};

constexpr std::string_view kStoreIdKey = "store-id";
constexpr std::string_view kFailedSegmentPrefix = "failed-segment/";

constexpr size_t kWriteBufferBytes = 16 << 20;
constexpr size_t kBlockCacheBytes = 32 << 20;
constexpr int kMaxOpenFiles = 128;
constexpr uint64_t kMaxLogBytes = 64 << 20;

rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }

std::string FailedSegmentKey(uint64_t segment_id) {
  return StrCat(kFailedSegmentPrefix, absl::Hex(segment_id, absl::kZeroPad16));
}

absl::Status FromRocks(const rocksdb::Status& status, const std::string& directory, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = StrCat("index ", directory, ": ", what, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(StrCat(message, ": make room on the disk"));
  if (status.IsCorruption()) {
    return absl::DataLossError(StrCat(message, ": put the data directory back from a backup"));
  }
  return absl::UnavailableError(StrCat(message, ": see to its disk, then restart the server"));
}

// RocksDB tells the reasons why a database can't be opened apart only by its texts.
absl::Status FromOpen(const rocksdb::Status& status, const std::string& directory) {
  const std::string text = status.ToString();
  if (absl::StrContains(text, "Permission denied") || absl::StrContains(text, "Read-only file system")) {
    return absl::PermissionDeniedError(
        StrCat("index ", directory, ": opening: ", text, ": run as the user who owns the directory"));
  }
  if (absl::StrContains(text, "No such file or directory")) {
    return absl::DataLossError(StrCat("index ", directory, ": a file that belongs to it is missing: ", text,
                                      ": put the data directory back from a backup"));
  }
  return FromRocks(status, directory, "opening");
}

rocksdb::Options MakeOptions(rocksdb::Env* env) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  table.cache_index_and_filter_blocks = true;  // else their memory grows with the number of chunks
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));  // most chunks that are offered are new

  rocksdb::Options options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  // What was acknowledged must be there: a log that is damaged before its end is an error, and not cut off
  // silently there, as by default. A last record that is cut short was never acknowledged.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.track_and_verify_wals_in_manifest = true;
  options.db_write_buffer_size = kWriteBufferBytes;
  options.write_buffer_size = kWriteBufferBytes / 4;
  options.max_total_wal_size = kMaxLogBytes;
  options.max_open_files = kMaxOpenFiles;
  options.max_background_jobs = 2;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.max_log_file_size = 1 << 20;
  options.keep_log_file_num = 2;
  options.stats_dump_period_sec = 0;
  options.compression = rocksdb::kNoCompression;  // most of it is hashes
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

}  // namespace

struct Index::Impl {
  std::string directory;
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  bool needs_repair = false;  // the writer's alone

  ~Impl() {
    for (rocksdb::ColumnFamilyHandle* family : families) {
      ESKER_CHECK(db->DestroyColumnFamilyHandle(family).ok());
    }
  }

  absl::StatusOr<std::optional<std::string>> Get(Family family, std::string_view key) const {
    std::string value;
    const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), families[family], ToSlice(key), &value);
    if (status.IsNotFound()) return std::nullopt;
    ESKER_RETURN_IF_ERROR(FromRocks(status, directory, StrCat("reading from ", kFamilyNames[family])));
    return value;
  }

  // Visits every key that begins with `prefix`.
  absl::Status Scan(
      Family family, std::string_view prefix,
      const std::function<absl::Status(std::string_view key, std::string_view value)>& visit) const {
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> at(db->NewIterator(options, families[family]));
    for (at->Seek(ToSlice(prefix)); at->Valid() && at->key().starts_with(ToSlice(prefix)); at->Next()) {
      ESKER_RETURN_IF_ERROR(visit(at->key().ToStringView(), at->value().ToStringView()));
    }
    return FromRocks(at->status(), directory, StrCat("scanning ", kFamilyNames[family]));
  }
};

// --- batch ---------------------------------------------------------------------------------------

struct IndexBatch::Impl {
  const std::vector<rocksdb::ColumnFamilyHandle*>* families;
  rocksdb::WriteBatch changes;

  // Building a batch in memory fails only beyond a size limit, and there is none.
  void Put(Family family, std::string_view key, std::string_view value) {
    ESKER_CHECK(changes.Put((*families)[family], ToSlice(key), ToSlice(value)).ok());
  }
  void Delete(Family family, std::string_view key) {
    ESKER_CHECK(changes.Delete((*families)[family], ToSlice(key)).ok());
  }
};

IndexBatch::IndexBatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
IndexBatch::~IndexBatch() = default;
IndexBatch::IndexBatch(IndexBatch&&) noexcept = default;
IndexBatch& IndexBatch::operator=(IndexBatch&&) noexcept = default;

bool IndexBatch::empty() const { return impl_->changes.Count() == 0; }

void IndexBatch::AddChunk(const ChunkEntry& entry) {
  const PlaceEntry place{.segment_id = entry.place.segment_id,
                         .offset = entry.place.offset,
                         .record_bytes = entry.record_bytes(),
                         .hash = entry.info.hash};
  impl_->Put(kPlaces, EncodePlaceKey(place.segment_id, place.offset), EncodePlaceValue(place));
  impl_->Put(kChunks, entry.info.hash.AsText(), EncodeChunkValue(entry));
}

void IndexBatch::RemoveChunk(const ChunkEntry& entry) {
  impl_->Delete(kPlaces, EncodePlaceKey(entry.place.segment_id, entry.place.offset));
  impl_->Delete(kChunks, entry.info.hash.AsText());
  if (entry.refs == 0) impl_->Delete(kUnreferenced, entry.info.hash.AsText());
}

void IndexBatch::SetRefs(const ChunkEntry& entry, uint64_t refs) {
  ChunkEntry changed = entry;
  changed.refs = refs;
  impl_->Put(kChunks, entry.info.hash.AsText(), EncodeChunkValue(changed));
  if (refs == 0) {
    impl_->Put(kUnreferenced, entry.info.hash.AsText(), "");
  } else if (entry.refs == 0) {
    impl_->Delete(kUnreferenced, entry.info.hash.AsText());
  }
}

void IndexBatch::UnlistUnreferenced(const Hash128& hash) { impl_->Delete(kUnreferenced, hash.AsText()); }

void IndexBatch::PutPart(const PartKey& key, const PartEntry& entry, std::string_view envelope) {
  const std::string bytes = EncodePartKey(key);
  impl_->Put(kParts, bytes, EncodePartValue(entry));
  impl_->Put(kPartEnvelopes, bytes, envelope);
}

void IndexBatch::RemovePart(const PartKey& key) {
  const std::string bytes = EncodePartKey(key);
  impl_->Delete(kParts, bytes);
  impl_->Delete(kPartEnvelopes, bytes);
}

void IndexBatch::SetLayout(const Hash128& digest, uint64_t refs, std::optional<std::string_view> envelope) {
  if (refs == 0) {
    impl_->Delete(kLayouts, digest.AsText());
    impl_->Delete(kLayoutRefs, digest.AsText());
    return;
  }
  impl_->Put(kLayoutRefs, digest.AsText(), EncodeLayoutRefs(refs));
  if (envelope.has_value()) impl_->Put(kLayouts, digest.AsText(), *envelope);
}

void IndexBatch::PutManifest(const SaveRef& save, std::string_view envelope) {
  impl_->Put(kManifests, EncodeSaveKey(save), envelope);
}
void IndexBatch::RemoveManifest(const SaveRef& save) { impl_->Delete(kManifests, EncodeSaveKey(save)); }
void IndexBatch::PutStoreId(std::string_view id) { impl_->Put(kMeta, kStoreIdKey, id); }
void IndexBatch::PutFailedSegment(uint64_t segment_id, std::string_view why) {
  impl_->Put(kMeta, FailedSegmentKey(segment_id), why);
}
void IndexBatch::RemoveFailedSegment(uint64_t segment_id) {
  impl_->Delete(kMeta, FailedSegmentKey(segment_id));
}

// --- index ---------------------------------------------------------------------------------------

Index::Index(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Index::~Index() = default;

absl::StatusOr<std::unique_ptr<Index>> Index::Open(const std::string& directory, rocksdb::Env* env) {
  const rocksdb::Options options = MakeOptions(env == nullptr ? rocksdb::Env::Default() : env);
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const char* name : kFamilyNames) descriptors.emplace_back(name, options);
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  rocksdb::DB* db = nullptr;
  ESKER_RETURN_IF_ERROR(
      FromOpen(rocksdb::DB::Open(options, directory, descriptors, &impl->families, &db), directory));
  impl->db.reset(db);
  return std::unique_ptr<Index>(new Index(std::move(impl)));
}

IndexBatch Index::NewBatch() const {
  auto impl = std::make_unique<IndexBatch::Impl>();
  impl->families = &impl_->families;
  return IndexBatch(std::move(impl));
}

absl::Status Index::Write(IndexBatch batch) {
  if (impl_->needs_repair) {
    // Flushes what was acknowledged and leaves the log in which a write failed behind: from then on the
    // failed batch can't turn up.
    ESKER_RETURN_IF_ERROR(FromRocks(impl_->db->Resume(), impl_->directory, "repair after a failed write"));
    impl_->needs_repair = false;
    spdlog::warn("index {}: works again after a failed write", impl_->directory);
  }
  rocksdb::WriteOptions synced;
  synced.sync = true;
  const rocksdb::Status status = impl_->db->Write(synced, &batch.impl_->changes);
  if (!status.ok()) {
    impl_->needs_repair = true;
    spdlog::error("index {}: a write failed: {}", impl_->directory, status.ToString());
  }
  return FromRocks(status, impl_->directory, "writing");
}

absl::StatusOr<std::optional<ChunkEntry>> Index::GetChunk(const Hash128& hash) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> value, impl_->Get(kChunks, hash.AsText()));
  if (!value.has_value()) return std::nullopt;
  return DecodeChunkValue(hash, *value);
}

absl::StatusOr<std::vector<std::optional<ChunkEntry>>> Index::GetChunks(
    std::span<const Hash128> hashes) const {
  std::vector<std::optional<ChunkEntry>> entries(hashes.size());
  if (hashes.empty()) return entries;
  std::vector<rocksdb::Slice> keys;
  keys.reserve(hashes.size());
  for (const Hash128& hash : hashes) keys.push_back(ToSlice(hash.AsText()));
  std::vector<rocksdb::PinnableSlice> values(hashes.size());
  std::vector<rocksdb::Status> statuses(hashes.size());
  impl_->db->MultiGet(rocksdb::ReadOptions(), impl_->families[kChunks], keys.size(), keys.data(),
                      values.data(), statuses.data());
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (statuses[i].IsNotFound()) continue;
    ESKER_RETURN_IF_ERROR(FromRocks(statuses[i], impl_->directory, "reading chunks"));
    ESKER_ASSIGN_OR_RETURN(entries[i], DecodeChunkValue(hashes[i], values[i].ToStringView()));
  }
  return entries;
}

absl::StatusOr<std::optional<PartEntry>> Index::GetPart(const PartKey& key) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> value, impl_->Get(kParts, EncodePartKey(key)));
  if (!value.has_value()) return std::nullopt;
  return DecodePartValue(*value);
}

absl::StatusOr<std::optional<std::string>> Index::GetPartEnvelope(const PartKey& key) const {
  return impl_->Get(kPartEnvelopes, EncodePartKey(key));
}

absl::StatusOr<std::optional<std::string>> Index::GetLayout(const Hash128& digest) const {
  return impl_->Get(kLayouts, digest.AsText());
}

absl::StatusOr<uint64_t> Index::GetLayoutRefs(const Hash128& digest) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> value, impl_->Get(kLayoutRefs, digest.AsText()));
  if (!value.has_value()) return 0;
  return DecodeLayoutRefs(*value);
}

absl::StatusOr<std::optional<std::string>> Index::GetManifest(const SaveRef& save) const {
  return impl_->Get(kManifests, EncodeSaveKey(save));
}

absl::StatusOr<std::optional<std::string>> Index::GetStoreId() const {
  return impl_->Get(kMeta, kStoreIdKey);
}

absl::StatusOr<std::vector<uint32_t>> Index::PartRanks(const SaveRef& save) const {
  std::vector<uint32_t> ranks;
  ESKER_RETURN_IF_ERROR(impl_->Scan(kParts, EncodeSaveKey(save), [&](std::string_view key, std::string_view) {
    absl::StatusOr<PartKey> part = DecodePartKey(key);
    if (part.ok()) ranks.push_back(part->rank);
    return part.status();
  }));
  return ranks;
}

absl::StatusOr<std::vector<SaveRef>> Index::ListSaves() const {
  std::set<SaveRef> saves;
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> at(impl_->db->NewIterator(options, impl_->families[kParts]));
  at->SeekToFirst();
  while (at->Valid()) {
    ESKER_ASSIGN_OR_RETURN(const PartKey part, DecodePartKey(at->key().ToStringView()));
    saves.insert(part.save);
    // Past this save's other ranks, of which there may be many thousands.
    at->Seek(EncodePartKey({part.save, UINT32_MAX}));
    if (at->Valid() && at->key().starts_with(EncodeSaveKey(part.save))) at->Next();
  }
  ESKER_RETURN_IF_ERROR(FromRocks(at->status(), impl_->directory, "listing saves"));
  ESKER_RETURN_IF_ERROR(impl_->Scan(kManifests, "", [&](std::string_view key, std::string_view) {
    absl::StatusOr<SaveRef> save = DecodeSaveKey(key);
    if (save.ok()) saves.insert(*save);
    return save.status();
  }));
  return std::vector<SaveRef>(saves.begin(), saves.end());
}

absl::Status Index::ForEachPlace(const PlaceVisitor& visit) const {
  return impl_->Scan(kPlaces, "", [&](std::string_view key, std::string_view value) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const PlaceEntry entry, DecodePlace(key, value));
    return visit(entry);
  });
}

absl::Status Index::ForEachPlaceIn(uint64_t segment_id, const PlaceVisitor& visit) const {
  const std::string prefix = EncodePlaceKey(segment_id, 0).substr(0, sizeof(segment_id));
  return impl_->Scan(kPlaces, prefix, [&](std::string_view key, std::string_view value) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const PlaceEntry entry, DecodePlace(key, value));
    return visit(entry);
  });
}

absl::Status Index::ForEachChunk(const std::function<absl::Status(const ChunkEntry&)>& visit) const {
  return impl_->Scan(kChunks, "", [&](std::string_view key, std::string_view value) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const Hash128 hash, HashFromBytes(key, "index: key of a chunk"));
    ESKER_ASSIGN_OR_RETURN(const ChunkEntry entry, DecodeChunkValue(hash, value));
    return visit(entry);
  });
}

absl::Status Index::ForEachPart(
    const std::function<absl::Status(const PartKey&, const PartEntry&)>& visit) const {
  return impl_->Scan(kParts, "", [&](std::string_view key, std::string_view value) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const PartKey part, DecodePartKey(key));
    ESKER_ASSIGN_OR_RETURN(const PartEntry entry, DecodePartValue(value));
    return visit(part, entry);
  });
}

absl::Status Index::ForEachLayout(
    const std::function<absl::Status(const Hash128&, uint64_t refs)>& visit) const {
  return impl_->Scan(kLayoutRefs, "", [&](std::string_view key, std::string_view value) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const Hash128 digest, HashFromBytes(key, "index: key of a layout"));
    ESKER_ASSIGN_OR_RETURN(const uint64_t refs, DecodeLayoutRefs(value));
    return visit(digest, refs);
  });
}

absl::Status Index::ForEachFailedSegment(
    const std::function<absl::Status(uint64_t, std::string_view why)>& visit) const {
  return impl_->Scan(kMeta, kFailedSegmentPrefix, [&](std::string_view key, std::string_view why) {
    uint64_t segment_id = 0;
    if (!absl::SimpleHexAtoi(ToAbsl(key.substr(kFailedSegmentPrefix.size())), &segment_id)) {
      return absl::DataLossError(
          StrCat("index ", impl_->directory, ": the key \"", key, "\" names no segment"));
    }
    return visit(segment_id, why);
  });
}

absl::StatusOr<std::vector<Hash128>> Index::ListUnreferenced(size_t limit) const {
  std::vector<Hash128> hashes;
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> at(
      impl_->db->NewIterator(options, impl_->families[kUnreferenced]));
  for (at->SeekToFirst(); at->Valid() && hashes.size() < limit; at->Next()) {
    ESKER_ASSIGN_OR_RETURN(const Hash128 hash,
                           HashFromBytes(at->key().ToStringView(), "index: key of an unreferenced chunk"));
    hashes.push_back(hash);
  }
  ESKER_RETURN_IF_ERROR(FromRocks(at->status(), impl_->directory, "listing unreferenced chunks"));
  return hashes;
}

}  // namespace esker::store
