// Typed access to the store's RocksDB: which chunks are durable and where, which parts, layouts and manifests
// there are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/index_records.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace esker::store {

// Changes that become durable together; made by Index::NewBatch. Later ones override earlier ones of the same
// key.
class IndexBatch {
 public:
  ~IndexBatch();
  IndexBatch(IndexBatch&&) noexcept;
  IndexBatch& operator=(IndexBatch&&) noexcept;

  // The chunk and its place. What is removed or changed is given as the index has it.
  void AddChunk(const ChunkEntry& entry);
  void RemoveChunk(const ChunkEntry& entry);
  void SetRefs(const ChunkEntry& entry, uint64_t refs);
  // Takes it off the list of unreferenced chunks, and leaves the chunk as it is.
  void UnlistUnreferenced(const Hash128& hash);

  void PutPart(const PartKey& key, const PartEntry& entry, std::string_view envelope);
  void RemovePart(const PartKey& key);
  // refs == 0 removes the layout. The envelope need only be given where the layout is new.
  void SetLayout(const Hash128& digest, uint64_t refs, std::optional<std::string_view> envelope);
  void PutManifest(const SaveRef& save, std::string_view envelope);
  void RemoveManifest(const SaveRef& save);
  void PutStoreId(std::string_view id);
  void PutFailedSegment(uint64_t segment_id, std::string_view why);
  void RemoveFailedSegment(uint64_t segment_id);

  bool empty() const;

 private:
  friend class Index;
  struct Impl;
  explicit IndexBatch(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Thread-safe for reads; Write is for one thread at a time. Errors: kDataLoss (damage), kUnimplemented (a
// record of a newer version), kResourceExhausted (disk full), kUnavailable (other I/O errors).
class Index {
 public:
  // Opens or makes the database in `directory`. `env` is for tests; nullptr: the machine's.
  static absl::StatusOr<std::unique_ptr<Index>> Open(const std::string& directory, rocksdb::Env* env);
  ~Index();

  IndexBatch NewBatch() const;
  // Durable when it returns OK. After an error the batch may turn up after a crash, until a later Write was
  // OK: so until then nothing may be destroyed that it refers to.
  absl::Status Write(IndexBatch batch);

  // Point reads: nothing if there is no such key.
  absl::StatusOr<std::optional<ChunkEntry>> GetChunk(const Hash128& hash) const;
  absl::StatusOr<std::vector<std::optional<ChunkEntry>>> GetChunks(std::span<const Hash128> hashes) const;
  absl::StatusOr<std::optional<PartEntry>> GetPart(const PartKey& key) const;
  absl::StatusOr<std::optional<std::string>> GetPartEnvelope(const PartKey& key) const;
  absl::StatusOr<std::optional<std::string>> GetLayout(const Hash128& digest) const;
  absl::StatusOr<uint64_t> GetLayoutRefs(const Hash128& digest) const;  // 0: no such layout
  absl::StatusOr<std::optional<std::string>> GetManifest(const SaveRef& save) const;
  absl::StatusOr<std::optional<std::string>> GetStoreId() const;

  // The ranks of a save's parts, sorted.
  absl::StatusOr<std::vector<uint32_t>> PartRanks(const SaveRef& save) const;
  // Every save of which there is a part or a manifest, sorted.
  absl::StatusOr<std::vector<SaveRef>> ListSaves() const;

  // Scans, each in the order of its keys and of one moment. The visitor's error ends the scan and is
  // returned.
  using PlaceVisitor = std::function<absl::Status(const PlaceEntry&)>;
  absl::Status ForEachPlace(const PlaceVisitor& visit) const;
  absl::Status ForEachPlaceIn(uint64_t segment_id, const PlaceVisitor& visit) const;
  absl::Status ForEachChunk(const std::function<absl::Status(const ChunkEntry&)>& visit) const;
  absl::Status ForEachPart(const std::function<absl::Status(const PartKey&, const PartEntry&)>& visit) const;
  absl::Status ForEachLayout(const std::function<absl::Status(const Hash128&, uint64_t refs)>& visit) const;
  absl::Status ForEachFailedSegment(
      const std::function<absl::Status(uint64_t, std::string_view why)>& visit) const;
  // At most `limit` chunks with refs == 0.
  absl::StatusOr<std::vector<Hash128>> ListUnreferenced(size_t limit) const;

 private:
  struct Impl;
  explicit Index(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker::store
