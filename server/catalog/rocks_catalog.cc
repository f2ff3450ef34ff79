#include "server/catalog/rocks_catalog.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "format/base/bytes.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"

namespace esker {
namespace {

constexpr size_t kMaxKeyBytes = 512;
constexpr size_t kWriteBufferBytes = 8 << 20;
constexpr size_t kBlockCacheBytes = 4 << 20;
constexpr size_t kVersionBytes = sizeof(uint64_t);

// In the family "meta": the layout of this database, and the last version that was given out.
constexpr std::string_view kMetaFamily = "meta";
constexpr std::string_view kFormatKey = "format";
constexpr std::string_view kLastVersionKey = "last_version";
constexpr uint64_t kCatalogFormat = 1;

rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }

std::string EncodeNumber(uint64_t value) {
  std::string bytes(sizeof(value), '\0');
  StoreLittle(reinterpret_cast<std::byte*>(bytes.data()), value);
  return bytes;
}

// From the first eight bytes; there must be as many.
uint64_t DecodeNumber(std::string_view bytes) { return LoadLittle<uint64_t>(AsBytes(bytes).data()); }

absl::Status FromRocks(const rocksdb::Status& status, const std::string& directory, std::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = StrCat("catalog ", directory, ": ", doing, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(StrCat(message, "; free space on its disk"));
  if (status.IsCorruption()) {
    return absl::DataLossError(StrCat(message, "; restore the catalog's directory from a backup"));
  }
  return absl::UnavailableError(StrCat(message, "; see to its disk, then restart the server"));
}

// RocksDB tells the reasons why a database can't be opened apart only by its texts.
absl::Status FromOpen(const rocksdb::Status& status, const std::string& directory) {
  const std::string text = status.ToString();
  if (absl::StrContains(text, "Permission denied") || absl::StrContains(text, "Read-only file system")) {
    return absl::PermissionDeniedError(
        StrCat("catalog ", directory, ": open: ", text, "; run as the user who owns the directory"));
  }
  if (status.IsIOError() && absl::StrContains(text, "lock ")) {
    return absl::FailedPreconditionError(
        StrCat("catalog ", directory,
               ": it is open elsewhere: stop the other server or use another directory: ", text));
  }
  if (status.IsPathNotFound() || status.IsNotFound() ||
      absl::StrContains(text, "No such file or directory")) {
    return absl::DataLossError(StrCat("catalog ", directory, ": a file that belongs to it is missing: ", text,
                                      "; restore the directory from a backup"));
  }
  return FromRocks(status, directory, "open");
}

rocksdb::Options MakeOptions(rocksdb::Env* env) {
  rocksdb::Options options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // What was acknowledged must be there: a log that is damaged before its end is an error, and never cut off
  // silently there, as the default (kPointInTimeRecovery) does. A last record that is cut short was never
  // acknowledged.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.track_and_verify_wals_in_manifest = true;
  options.write_buffer_size = kWriteBufferBytes;
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 2 * kWriteBufferBytes;
  options.max_open_files = 64;
  options.max_background_jobs = 2;
  options.compression = rocksdb::kNoCompression;
  options.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  options.keep_log_file_num = 2;
  options.max_log_file_size = 1 << 20;
  options.stats_dump_period_sec = 0;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// RocksDB makes a new, empty database where it finds no CURRENT file. If there is data, that would be the
// silent loss of every checkpoint: garbage collection would then remove them.
absl::Status CheckNotHeadless(rocksdb::Env* env, const std::string& directory) {
  if (env->FileExists(directory + "/CURRENT").ok()) return absl::OkStatus();
  std::vector<std::string> names;
  const rocksdb::Status listed = env->GetChildren(directory, &names);
  if (listed.IsNotFound() || listed.IsPathNotFound()) return absl::OkStatus();
  if (!listed.ok()) return FromOpen(listed, directory);
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".sst") || absl::EndsWith(name, ".log")) {
      return absl::DataLossError(
          StrCat("catalog ", directory, ": it holds data (", name,
                 ") but its file CURRENT is missing; restore the directory from a backup"));
    }
  }
  return absl::OkStatus();
}

// Makes the directory's own entry durable, which RocksDB leaves to its user.
absl::Status SyncParent(rocksdb::Env* env, const std::string& directory) {
  std::string_view path = directory;
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  const std::string parent(slash == std::string_view::npos ? "."
                                                           : path.substr(0, std::max<size_t>(slash, 1)));
  std::unique_ptr<rocksdb::Directory> handle;
  rocksdb::Status status = env->NewDirectory(parent, &handle);
  if (status.ok()) status = handle->Fsync();
  return FromRocks(status, directory, "fsync of the directory above");
}

class RocksCatalog final : public Catalog {
 public:
  RocksCatalog(std::string directory, std::unique_ptr<rocksdb::DB> db, rocksdb::ColumnFamilyHandle* entries,
               rocksdb::ColumnFamilyHandle* meta)
      : directory_(std::move(directory)), db_(std::move(db)), entries_(entries), meta_(meta) {}

  ~RocksCatalog() override {
    for (rocksdb::ColumnFamilyHandle* family : {entries_, meta_}) {
      ESKER_CHECK(db_->DestroyColumnFamilyHandle(family).ok());
    }
  }

  // Reads the meta family, or writes it if the database is new.
  absl::Status Load();

  absl::StatusOr<std::optional<CatalogEntry>> Get(std::string_view key) const override;
  absl::StatusOr<std::vector<CatalogEntry>> List(std::string_view prefix) const override;
  absl::StatusOr<bool> CompareAndSet(const std::vector<CatalogCondition>& conditions,
                                     const std::vector<CatalogMutation>& mutations) override;

 private:
  absl::StatusOr<CatalogEntry> Decode(std::string_view key, std::string_view value) const;
  absl::StatusOr<std::optional<uint64_t>> ReadMeta(std::string_view key) const;
  absl::StatusOr<bool> Holds(const CatalogCondition& condition) const;
  absl::Status Write(const std::vector<CatalogMutation>& mutations) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string directory_;
  const std::unique_ptr<rocksdb::DB> db_;
  rocksdb::ColumnFamilyHandle* const entries_;
  rocksdb::ColumnFamilyHandle* const meta_;

  // Held over a whole change, its fsync included: changes are few and small. Reads don't take it: RocksDB
  // makes a batch visible at once, and only after its log record is synced.
  Mutex mu_;
  uint64_t last_version_ ABSL_GUARDED_BY(mu_) = 0;
};

absl::StatusOr<std::optional<uint64_t>> RocksCatalog::ReadMeta(std::string_view key) const {
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), meta_, ToSlice(key), &value);
  if (status.IsNotFound()) return std::nullopt;
  ESKER_RETURN_IF_ERROR(FromRocks(status, directory_, StrCat("read of ", key)));
  if (value.size() != sizeof(uint64_t)) {
    return absl::DataLossError(StrCat("catalog ", directory_, ": ", key, " has ", value.size(),
                                      " bytes, expected ", sizeof(uint64_t)));
  }
  return DecodeNumber(value);
}

absl::Status RocksCatalog::Load() {
  MutexLock lock(&mu_);
  ESKER_ASSIGN_OR_RETURN(const std::optional<uint64_t> format, ReadMeta(kFormatKey));
  ESKER_ASSIGN_OR_RETURN(const std::optional<uint64_t> last_version, ReadMeta(kLastVersionKey));
  last_version_ = last_version.value_or(0);
  if (!format.has_value()) {
    rocksdb::WriteOptions synced;
    synced.sync = true;
    return FromRocks(db_->Put(synced, meta_, ToSlice(kFormatKey), EncodeNumber(kCatalogFormat)), directory_,
                     "write of the format's number");
  }
  if (*format == kCatalogFormat) return absl::OkStatus();
  return absl::FailedPreconditionError(StrCat("catalog ", directory_, ": it has format ", *format,
                                              ", this program knows ", kCatalogFormat,
                                              "; use the version of Esker that wrote it, or a newer one"));
}

absl::StatusOr<CatalogEntry> RocksCatalog::Decode(std::string_view key, std::string_view value) const {
  const uint64_t version = value.size() >= kVersionBytes ? DecodeNumber(value) : 0;
  if (version == 0) {
    return absl::DataLossError(StrCat("catalog ", directory_, ": the entry \"", key, "\" of ", value.size(),
                                      " bytes does not begin with its version"));
  }
  return CatalogEntry{std::string(key), std::string(value.substr(kVersionBytes)), version};
}

absl::Status CheckKey(std::string_view key) {
  if (!key.empty() && key.size() <= kMaxKeyBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("a catalog key of ", key.size(), " bytes: expected 1 to ", kMaxKeyBytes));
}

absl::Status CheckChange(const std::vector<CatalogCondition>& conditions,
                         const std::vector<CatalogMutation>& mutations) {
  if (conditions.size() + mutations.size() > kMaxCatalogOperations) {
    return absl::InvalidArgumentError(StrCat("a catalog change of ", conditions.size(), " conditions and ",
                                             mutations.size(), " mutations: expected at most ",
                                             kMaxCatalogOperations, " together"));
  }
  for (const CatalogCondition& condition : conditions) ESKER_RETURN_IF_ERROR(CheckKey(condition.key));
  std::vector<std::string_view> keys;
  for (const CatalogMutation& mutation : mutations) {
    ESKER_RETURN_IF_ERROR(CheckKey(mutation.key));
    keys.push_back(mutation.key);
    if (mutation.value.has_value() && mutation.value->size() > kMaxCatalogValueBytes) {
      return absl::InvalidArgumentError(StrCat("a catalog value of ", mutation.value->size(), " bytes for \"",
                                               mutation.key, "\": expected at most ", kMaxCatalogValueBytes));
    }
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("a catalog change that writes the key \"", *twice, "\" twice"));
}

absl::StatusOr<std::optional<CatalogEntry>> RocksCatalog::Get(std::string_view key) const {
  ESKER_RETURN_IF_ERROR(CheckKey(key));
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), entries_, ToSlice(key), &value);
  if (status.IsNotFound()) return std::nullopt;
  ESKER_RETURN_IF_ERROR(FromRocks(status, directory_, StrCat("read of \"", key, "\"")));
  return Decode(key, value);
}

absl::StatusOr<std::vector<CatalogEntry>> RocksCatalog::List(std::string_view prefix) const {
  std::vector<CatalogEntry> entries;
  // An iterator sees the database as it was when it was made.
  const std::unique_ptr<rocksdb::Iterator> iterator(db_->NewIterator(rocksdb::ReadOptions(), entries_));
  for (iterator->Seek(ToSlice(prefix)); iterator->Valid() && iterator->key().starts_with(ToSlice(prefix));
       iterator->Next()) {
    ESKER_ASSIGN_OR_RETURN(CatalogEntry entry,
                           Decode(iterator->key().ToStringView(), iterator->value().ToStringView()));
    entries.push_back(std::move(entry));
  }
  ESKER_RETURN_IF_ERROR(FromRocks(iterator->status(), directory_, StrCat("list of \"", prefix, "\"")));
  return entries;
}

absl::StatusOr<bool> RocksCatalog::Holds(const CatalogCondition& condition) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<CatalogEntry> entry, Get(condition.key));
  return condition.version == (entry.has_value() ? entry->version : 0);
}

absl::Status RocksCatalog::Write(const std::vector<CatalogMutation>& mutations) {
  // Never given out twice, even if the write fails: it may have reached the disk.
  const std::string version = EncodeNumber(++last_version_);
  rocksdb::WriteBatch batch;
  rocksdb::Status status = batch.Put(meta_, ToSlice(kLastVersionKey), version);
  for (const CatalogMutation& mutation : mutations) {
    if (!status.ok()) break;
    status = mutation.value.has_value() ? batch.Put(entries_, mutation.key, StrCat(version, *mutation.value))
                                        : batch.Delete(entries_, mutation.key);
  }
  rocksdb::WriteOptions synced;
  synced.sync = true;
  if (status.ok()) status = db_->Write(synced, &batch);
  return FromRocks(status, directory_, "write");
}

absl::StatusOr<bool> RocksCatalog::CompareAndSet(const std::vector<CatalogCondition>& conditions,
                                                 const std::vector<CatalogMutation>& mutations) {
  ESKER_RETURN_IF_ERROR(CheckChange(conditions, mutations));
  MutexLock lock(&mu_);
  for (const CatalogCondition& condition : conditions) {
    ESKER_ASSIGN_OR_RETURN(const bool holds, Holds(condition));
    if (!holds) return false;
  }
  if (!mutations.empty()) ESKER_RETURN_IF_ERROR(Write(mutations));
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> OpenRocksCatalog(const std::string& directory, rocksdb::Env* env) {
  if (env == nullptr) env = rocksdb::Env::Default();
  ESKER_RETURN_IF_ERROR(CheckNotHeadless(env, directory));
  const rocksdb::Options options = MakeOptions(env);
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {{rocksdb::kDefaultColumnFamilyName, options},
                                                                 {std::string(kMetaFamily), options}};
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options, directory, families, &handles, &db);
  if (!status.ok()) return FromOpen(status, directory);
  auto catalog =
      std::make_unique<RocksCatalog>(directory, std::unique_ptr<rocksdb::DB>(db), handles[0], handles[1]);
  ESKER_RETURN_IF_ERROR(SyncParent(env, directory));
  ESKER_RETURN_IF_ERROR(catalog->Load());
  return catalog;
}

}  // namespace esker
