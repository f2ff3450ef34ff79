// One server's complete store of parts: chunks in segments on a Disk, and an index in RocksDB.
// docs/design/0001-store.md says how it works and why.
//
//   directory/FORMAT          the format's version and the store's UUID
//   directory/LOCK            held while a server runs
//   directory/segments/       segment files (format/segment_header.h)
//   directory/index/          RocksDB: chunks, places, parts, layouts, manifests, meta (docs/format.md)
//
// Guarantees: a part is visible only once it and every chunk it names are durable (Seal); what Seal
// acknowledged survives any crash; a chunk's space is reused only after no part, no open save and no read
// under way refers to it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/chunk_record.h"
#include "format/hash.h"
#include "format/proto/checkpoint.pb.h"
#include "server/io/buffer_pool.h"
#include "server/io/disk.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace esker {

struct StoreOptions {
  std::string directory;  // made if it does not exist
  DiskEngine engine = DiskEngine::kAuto;
  uint64_t segment_bytes = 256 << 20;      // of new segments; a multiple of kBlockBytes, at least 16 MiB
  uint64_t buffer_pool_bytes = 128 << 20;  // all payload memory of the server
  // The stock of empty, written segments for new data (which takes O_DIRECT writes faster than new files do)
  // is what the largest of the last saves took, but no more than this.
  uint64_t recycle_bytes = uint64_t{64} << 30;
  uint64_t min_free_bytes = 256 << 20;  // of the file system: never promised to a save
  uint64_t read_lease_ttl_ms = 30'000;
  const Clock* clock = SystemClock();
};

// One save of one (run, step), as the catalog names it.
struct SaveRef {
  std::string run;
  uint64_t step = 0;
  uint64_t save_id = 0;

  auto operator<=>(const SaveRef&) const = default;
};

// What one rank contributes to a save.
struct PartRef {
  SaveRef save;
  uint64_t attempt = 0;
  uint32_t rank = 0;

  auto operator<=>(const PartRef&) const = default;
};

// What Seal returns. Exactly one of the two: `missing` (nothing was sealed), or `entry` filled (all but
// `servers`).
struct SealResult {
  std::vector<Hash128> missing;
  v1::PartEntry entry;
};

// A chunk as it was read: `record` holds the whole record, whose header and CRC-32C were checked.
struct ChunkRead {
  Buffer record;
  ChunkInfo info;
  ByteView stored() const { return {record.data() + PayloadOffset(info.stored_bytes), info.stored_bytes}; }
};

// Shared by all who asked for it at the same time.
using ChunkReadOr = absl::StatusOr<std::shared_ptr<const ChunkRead>>;

enum class ReadMode {
  kShared,    // a read under way or just done by somebody else will do
  kFromDisk,  // to see whether the disk has it
};

// Where a chunk's record is, for people.
struct ChunkLocation {
  std::string file;
  uint64_t offset = 0;
  uint64_t record_bytes = 0;
};

// A part as it was sealed.
struct StoredPart {
  PartRef ref;
  std::string envelope;   // of a v1::Part
  v1::PartEntry entry{};  // without servers
};

struct RemovedSpace {
  uint64_t parts = 0;
  uint64_t chunks = 0;
  uint64_t chunk_bytes = 0;        // of their records
  uint64_t disk_bytes_freed = 0;   // given back to the file system
  uint64_t segments_recycled = 0;  // emptied and kept for new data
  uint64_t recycled_bytes = 0;
};

struct StoreStats {
  uint64_t segments = 0;
  uint64_t free_segments = 0;
  uint64_t segment_bytes = 0;
  uint64_t live_bytes = 0;
  uint64_t allocated_bytes = 0;
  uint64_t reserved_bytes = 0;
  uint64_t chunks = 0;
  uint64_t parts = 0;
  uint64_t layouts = 0;
  uint64_t open_saves = 0;
  uint64_t open_reads = 0;
  uint64_t chunks_read = 0;         // from the disk, since the start
  uint64_t chunk_reads_joined = 0;  // that another client's read of the disk served
  DiskSpace disk;
  std::vector<std::string> failed_segments;
};

// Thread-safe.
class Store {
 public:
  // Opens or makes the store; reconciles index and segments and reclaims what nothing refers to. Errors:
  // kFailedPrecondition (another server holds the directory; written by a newer format), kPermissionDenied,
  // kResourceExhausted, kDataLoss.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const StoreOptions& options);
  // The same on a disk of the caller's, which serves directory/segments, and with RocksDB in an environment
  // of the caller's (which must outlive the store; nullptr: the machine's): for tests and simulation.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const StoreOptions& options, std::unique_ptr<Disk> disk,
                                                     rocksdb::Env* index_env = nullptr);
  // Waits for operations under way. Unsealed parts are forgotten.
  ~Store();

  const std::string& id() const;  // the store's UUID, "xxxxxxxx-xxxx-…"
  std::string DescribeDisk() const;
  // Memory for Put, shared with reads.
  BufferPool* buffers();

  // --- saving ------------------------------------------------------------------------------------

  // Promises space for `raw_bytes` to this part. kResourceExhausted gives the figures. Doing it again
  // replaces the promise.
  absl::Status Reserve(const PartRef& part, uint64_t raw_bytes);

  // For each hash: whether the store lacks it. What it holds is kept for this part until Seal or EndSave.
  absl::StatusOr<std::vector<bool>> Offer(const PartRef& part, const std::vector<Hash128>& hashes);

  // Takes a chunk for this part. `record` is from buffers(), or borrowed, at least
  // RecordBytes(info.stored_bytes), with the stored bytes at PayloadOffset(info.stored_bytes); the caller has
  // checked their CRC-32C, and the store fills in the rest. `done` is called once, on any thread, when
  // `record` is not used any more: OK means written, not yet durable. A chunk that the store holds already is
  // not written again. May block for a short time.
  void Put(const PartRef& part, const ChunkInfo& info, Buffer record, std::function<void(absl::Status)> done);

  // Makes the part and all its chunks durable, then visible. `layout_envelope` may be empty if the store
  // holds the layout (else kFailedPrecondition). Blocks; many Seals at a time share their fdatasync and index
  // write. Sealing the same part again returns the same entry; a different part of the same PartRef is
  // kAlreadyExists, naming both digests.
  absl::StatusOr<SealResult> Seal(const PartRef& part, std::string_view part_envelope,
                                  std::string_view layout_envelope);

  // The save is over (committed, aborted, expired): forgets promises and what was kept for parts that were
  // not sealed.
  void EndSave(const SaveRef& save);
  // Saves that hold promises or unsealed chunks, with the time (Clock::MonotonicMillis) of their last Offer,
  // Put or Seal.
  std::vector<std::pair<SaveRef, int64_t>> OpenSaves() const;

  // Manifests: immutable, durable when PutManifest returns. Removed with their save.
  absl::Status PutManifest(const SaveRef& save, std::string_view envelope);
  absl::StatusOr<std::string> GetManifest(const SaveRef& save) const;

  // --- reading -----------------------------------------------------------------------------------

  absl::StatusOr<StoredPart> GetPart(const SaveRef& save, uint32_t rank) const;  // kNotFound
  absl::StatusOr<std::vector<uint32_t>> PartRanks(const SaveRef& save) const;    // sorted
  absl::StatusOr<std::string> GetLayout(const Hash128& digest) const;            // the envelope; kNotFound

  // Reads a chunk's record and checks it (CheckRecord). `done` is called once, on one of the store's threads
  // or at once on this one; it may block for a short time but not wait for another read. kNotFound; kDataLoss
  // names file and offset. May block while memory is short.
  void ReadChunk(const Hash128& hash, ReadMode mode, std::function<void(ChunkReadOr)> done);
  absl::StatusOr<ChunkLocation> Locate(const Hash128& hash) const;

  // A lease against garbage collection. The caller registers first and then checks in the catalog that the
  // checkpoint is committed; GC looks in the catalog first and then for readers: so one of the two sees the
  // other.
  uint64_t OpenRead(const SaveRef& save);
  absl::Status RenewRead(uint64_t lease_id);  // kNotFound if it ran out
  void CloseRead(uint64_t lease_id);
  bool HasReaders(const SaveRef& save) const;
  // Until then readers from before a restart may be at work that this process does not know of.
  bool MayHaveUnknownReaders() const;

  // --- space -------------------------------------------------------------------------------------

  // Every save of which there is a part or a manifest.
  absl::StatusOr<std::vector<SaveRef>> ListSaves() const;
  // Removes the parts and the manifest of a save, and frees what nothing else refers to. Durable when it
  // returns; after a crash in the middle, do it again.
  absl::StatusOr<RemovedSpace> RemoveSave(const SaveRef& save);

  absl::StatusOr<StoreStats> Stats() const;

  // Recounts everything from scratch (references, live bytes, places, files) and compares: kInternal says
  // what disagrees. For tests, and for `esker status --check`. Blocks changes while it runs.
  absl::Status CheckConsistency();

 private:
  class Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace esker
