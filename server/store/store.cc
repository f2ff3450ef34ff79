#include "server/store/store.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "server/store/chunk_io.h"
#include "server/store/commit_context.h"
#include "server/store/committer.h"
#include "server/store/consistency.h"
#include "server/store/data_directory.h"
#include "server/store/delta_reads.h"
#include "server/store/index.h"
#include "server/store/read_leases.h"
#include "server/store/recovery.h"
#include "server/store/removal.h"
#include "server/store/seal_group.h"
#include "server/store/segment_set.h"
#include "server/store/sessions.h"
#include "server/store/shared_reads.h"
#include "server/store/stock_keeper.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

constexpr uint64_t kMinSegmentBytes = 16 << 20;

absl::Status CheckOptions(const StoreOptions& options) {
  if (options.segment_bytes < kMinSegmentBytes || options.segment_bytes % kBlockBytes != 0) {
    return absl::InvalidArgumentError(StrCat("store: expected segments of at least ", kMinSegmentBytes,
                                             " bytes, a multiple of ", kBlockBytes, ", found ",
                                             options.segment_bytes));
  }
  const uint64_t largest_record = RecordBytes(kMaxChunkBytes);
  if (options.buffer_pool_bytes < largest_record) {
    return absl::InvalidArgumentError(StrCat("store: expected buffers of at least ", largest_record,
                                             " bytes in all (one record), found ",
                                             options.buffer_pool_bytes));
  }
  return absl::OkStatus();
}

// What records of `raw_bytes` may take: a block of header for each chunk, the last block's padding.
uint64_t MostRecordBytes(uint64_t raw_bytes) { return raw_bytes + raw_bytes / 1024 + 2 * kRecordAlignment; }

std::string PartText(const SaveRef& save, uint32_t rank) {
  return StrCat("part of ", save.run, "@", save.step, " (save ", absl::Hex(save.save_id), ") rank ", rank);
}

absl::Status CheckDigest(const std::string& envelope, const Hash128& digest, const std::string& what) {
  const Hash128 found = HashOf(AsBytes(envelope));
  if (found == digest) return absl::OkStatus();
  return absl::DataLossError(
      StrCat(what, " is damaged in the index: expected digest ", digest.ToHex(), ", found ", found.ToHex()));
}

}  // namespace

class Store::Impl {
 public:
  Impl(const StoreOptions& options, std::unique_ptr<store::DataDirectory> directory,
       std::unique_ptr<Disk> disk, std::unique_ptr<store::Index> index)
      : options_(options),
        directory_(std::move(directory)),
        id_(store::StoreIdText(directory_->store_id())),
        buffers_(options.buffer_pool_bytes, RecordBytes(kMaxChunkBytes)),
        disk_(std::move(disk)),
        index_(std::move(index)),
        sessions_(options.clock),
        leases_(options.clock, options.read_lease_ttl_ms, !directory_->is_new()),
        segments_(disk_.get(), MakeSegmentOptions()),
        committer_(store::CommitContext(index_.get(), &segments_, &sessions_, &counts_, options.clock)),
        io_(std::make_unique<store::ChunkIo>(&buffers_, index_.get(), &segments_, &sessions_, &committer_)),
        delta_reads_(std::make_unique<store::DeltaReads>(&buffers_, io_.get())),
        shared_reads_(delta_reads_.get(), &leases_, store::KeptChunksFor(options.buffer_pool_bytes)) {
    disk_->RegisterMemory(buffers_.memory());
  }

  ~Impl() {
    stock_keeper_ = nullptr;
    delta_reads_ = nullptr;     // uses io_
    io_ = nullptr;              // waits for reads and writes, which may post to the committer
    segments_.StopReclaimer();  // so does the reclaimer
    committer_.Stop();
  }

  absl::Status Recover() {
    ESKER_RETURN_IF_ERROR(committer_.Run([this](store::CommitContext* context) {
      return store::Recover(context, disk_.get(), directory_->store_id());
    }));
    stock_keeper_ = std::make_unique<store::StockKeeper>(&segments_, &sessions_, io_.get(), options_.clock);
    return absl::OkStatus();
  }

  absl::Status Reserve(const PartRef& part, uint64_t raw_bytes);
  absl::StatusOr<std::vector<bool>> Offer(const PartRef& part, const std::vector<Hash128>& hashes);
  absl::StatusOr<SealResult> Seal(const PartRef& part, std::string_view part_envelope,
                                  std::string_view layout_envelope);
  void EndSave(const SaveRef& save);
  absl::Status PutManifest(const SaveRef& save, std::string_view envelope);
  absl::StatusOr<StoredPart> GetPart(const SaveRef& save, uint32_t rank) const;
  absl::StatusOr<RemovedSpace> RemoveSave(const SaveRef& save);
  absl::StatusOr<StoreStats> Stats();
  absl::Status CheckConsistency();

  const std::string& id() const { return id_; }
  Disk* disk() { return disk_.get(); }
  BufferPool* buffers() { return &buffers_; }
  const store::Index& index() const { return *index_; }
  store::SegmentSet* segments() { return &segments_; }
  store::Sessions* sessions() { return &sessions_; }
  store::ReadLeases* leases() { return &leases_; }
  store::Committer* committer() { return &committer_; }
  store::ChunkIo* io() { return io_.get(); }
  void ReadChunk(const Hash128& hash, ReadMode mode, store::ReadDone done);
  void CloseRead(uint64_t lease_id);

 private:
  store::SegmentSetOptions MakeSegmentOptions();
  void RecordFailure(uint64_t segment_id, const std::optional<std::string>& why);
  void PinForSeal(const std::vector<Hash128>& hashes);
  absl::Status RemovePartsOf(const SaveRef& save, RemovedSpace* removed);
  absl::Status RemoveManifestOf(const SaveRef& save);

  // Constant after construction.
  const StoreOptions options_;
  const std::unique_ptr<store::DataDirectory> directory_;
  const std::string id_;

  // Each has its own lock, and calls none of the others under it. In the order of dependency.
  BufferPool buffers_;
  const std::unique_ptr<Disk> disk_;
  const std::unique_ptr<store::Index> index_;
  store::StoreCounts counts_;
  store::Sessions sessions_;
  store::ReadLeases leases_;
  store::SegmentSet segments_;
  store::Committer committer_;
  std::unique_ptr<store::ChunkIo> io_;
  std::unique_ptr<store::DeltaReads> delta_reads_;
  store::SharedReads shared_reads_;
  std::unique_ptr<store::StockKeeper> stock_keeper_;  // from recovery on
};

store::SegmentSetOptions Store::Impl::MakeSegmentOptions() {
  return {.directory = directory_->segments_path(),
          .store_id = directory_->store_id(),
          .segment_bytes = options_.segment_bytes,
          .recycle_bytes = options_.recycle_bytes,
          .min_free_bytes = options_.min_free_bytes,
          .clock = options_.clock,
          .failure_changed = [this](uint64_t id, const std::optional<std::string>& why) {
            RecordFailure(id, why);
          }};
}

void Store::Impl::RecordFailure(uint64_t segment_id, const std::optional<std::string>& why) {
  committer_.Post([segment_id, why](store::CommitContext* context) {
    store::IndexBatch batch = context->index->NewBatch();
    if (why.has_value()) {
      batch.PutFailedSegment(segment_id, *why);
    } else {
      batch.RemoveFailedSegment(segment_id);
    }
    const absl::Status status = context->Write(std::move(batch));
    if (!status.ok())
      spdlog::error("store: the state of segment {} can't be kept: {}", segment_id, status.ToString());
  });
}

absl::Status Store::Impl::Reserve(const PartRef& part, uint64_t raw_bytes) {
  shared_reads_.DropUnlessWanted();  // readers that died without closing their leases
  ESKER_ASSIGN_OR_RETURN(const DiskSpace space, disk_->Space());
  const uint64_t reusable = segments_.reusable_bytes();
  const uint64_t usable = space.available_bytes + reusable;
  const uint64_t available = usable - std::min(usable, options_.min_free_bytes);
  const uint64_t needed = MostRecordBytes(raw_bytes);
  const std::optional<uint64_t> promised = sessions_.Promise(part, needed, available);
  if (!promised.has_value()) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat(
      PartText(part.save, part.rank), " needs ", needed, " bytes, but of the disk's ", space.total_bytes,
      " bytes ", space.available_bytes, " are free and ", reusable,
      " in segments can be used again, of which ", options_.min_free_bytes, " are kept free and ", *promised,
      " are promised to other saves: delete checkpoints (esker rm, esker gc) or make room on the disk of ",
      options_.directory));
}

absl::StatusOr<std::vector<bool>> Store::Impl::Offer(const PartRef& part,
                                                     const std::vector<Hash128>& hashes) {
  using Held = store::Sessions::Held;
  ESKER_ASSIGN_OR_RETURN(const std::vector<Held> held, sessions_.PinForPart(part, hashes));
  std::vector<Hash128> unknown;
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (held[i] == Held::kLookUp) unknown.push_back(hashes[i]);
  }
  absl::StatusOr<std::vector<std::optional<store::ChunkEntry>>> entries = index_->GetChunks(unknown);
  if (!entries.ok()) return entries.status();
  absl::flat_hash_set<Hash128> absent;
  for (size_t i = 0; i < unknown.size(); ++i) {
    if (!(*entries)[i].has_value() || sessions_.IsDamaged(unknown[i])) absent.insert(unknown[i]);
  }
  // A chunk that somebody wrote between the pin and here counts as missing, too: its Put will find it.
  committer_.Settle(sessions_.UnpinForPart(part, std::vector<Hash128>(absent.begin(), absent.end())));
  std::vector<bool> missing(hashes.size());
  for (size_t i = 0; i < hashes.size(); ++i) {
    missing[i] = held[i] == Held::kDying || absent.contains(hashes[i]);
  }
  return missing;
}

void Store::Impl::PinForSeal(const std::vector<Hash128>& hashes) {
  std::vector<Hash128> wanted = hashes;
  while (true) {
    const std::vector<store::Sessions::Held> held = sessions_.Pin(wanted);
    std::vector<Hash128> dying;
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (held[i] == store::Sessions::Held::kDying) dying.push_back(wanted[i]);
    }
    if (dying.empty()) return;
    // They are gone as soon as the committer has done with what it is at.
    const absl::Status status = committer_.Run([](store::CommitContext*) { return absl::OkStatus(); });
    ESKER_CHECK(status.ok());
    wanted = std::move(dying);
  }
}

absl::StatusOr<SealResult> Store::Impl::Seal(const PartRef& part, std::string_view part_envelope,
                                             std::string_view layout_envelope) {
  absl::StatusOr<store::SealRequest> prepared =
      store::PrepareSeal(*index_, part, part_envelope, layout_envelope);
  ESKER_RETURN_IF_ERROR(Annotate(prepared.status(), PartText(part.save, part.rank)));
  const store::SealRequest& request = *prepared;
  ESKER_ASSIGN_OR_RETURN(std::optional<SealResult> sealed, store::FindSealed(*index_, request));
  if (sealed.has_value()) {
    committer_.Settle(sessions_.EndPart(part));
    return *std::move(sealed);
  }
  ESKER_RETURN_IF_ERROR(sessions_.PinForPart(part, {}).status());  // a sign of life of the save
  PinForSeal(request.chunks);
  const absl::Cleanup unpin = [&] { committer_.Settle(sessions_.Unpin(request.chunks)); };
  sessions_.AwaitWrites(request.chunks);
  absl::StatusOr<SealResult> result = committer_.Seal(request);
  if (!result.ok() || result->missing.empty()) return result;

  // What is there stays for the next try.
  const absl::flat_hash_set<Hash128> missing(result->missing.begin(), result->missing.end());
  std::vector<Hash128> present;
  for (const Hash128& hash : request.chunks) {
    if (!missing.contains(hash)) present.push_back(hash);
  }
  ESKER_RETURN_IF_ERROR(sessions_.PinForPart(part, present).status());
  return result;
}

void Store::Impl::EndSave(const SaveRef& save) {
  committer_.Settle(sessions_.EndSave(save));
  if (!sessions_.HasOpenSaves()) segments_.NoteSavesEnded();
}

absl::Status Store::Impl::PutManifest(const SaveRef& save, std::string_view envelope) {
  return committer_.Run([&](store::CommitContext* context) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> stored, context->index->GetManifest(save));
    if (stored == envelope) return absl::OkStatus();
    if (stored.has_value()) {
      return absl::AlreadyExistsError(StrCat("manifest of ", save.run, "@", save.step, " (save ",
                                             absl::Hex(save.save_id), "): stored with digest ",
                                             HashOf(AsBytes(*stored)).ToHex(), ", now given with ",
                                             HashOf(AsBytes(envelope)).ToHex()));
    }
    store::IndexBatch batch = context->index->NewBatch();
    batch.PutManifest(save, envelope);
    return context->Write(std::move(batch));
  });
}

absl::StatusOr<StoredPart> Store::Impl::GetPart(const SaveRef& save, uint32_t rank) const {
  const store::PartKey key{save, rank};
  ESKER_ASSIGN_OR_RETURN(const std::optional<store::PartEntry> entry, index_->GetPart(key));
  ESKER_ASSIGN_OR_RETURN(std::optional<std::string> envelope, index_->GetPartEnvelope(key));
  if (!entry.has_value() || !envelope.has_value()) {
    return absl::NotFoundError(StrCat("the store holds no ", PartText(save, rank)));
  }
  ESKER_RETURN_IF_ERROR(CheckDigest(*envelope, entry->part_digest, PartText(save, rank)));
  StoredPart part{.ref = {.save = save, .attempt = entry->attempt, .rank = rank},
                  .envelope = *std::move(envelope)};
  store::FillPartEntry(rank, *entry, &part.entry);
  return part;
}

absl::Status Store::Impl::RemovePartsOf(const SaveRef& save, RemovedSpace* removed) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<uint32_t> ranks, index_->PartRanks(save));
  std::span<const uint32_t> left = ranks;
  while (!left.empty()) {
    ESKER_RETURN_IF_ERROR(committer_.Run([&](store::CommitContext* context) -> absl::Status {
      std::vector<Hash128> unpinned;
      ESKER_ASSIGN_OR_RETURN(const store::RemovedParts parts,
                             store::RemoveParts(context, save, left, &unpinned));
      removed->parts += parts.parts;
      removed->chunks += parts.chunks;
      removed->chunk_bytes += parts.chunk_bytes;
      left = left.subspan(parts.ranks_done);
      return store::Reap(context, unpinned);
    }));
  }
  return absl::OkStatus();
}

absl::Status Store::Impl::RemoveManifestOf(const SaveRef& save) {
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> manifest, index_->GetManifest(save));
  if (!manifest.has_value()) return absl::OkStatus();
  return committer_.Run([&](store::CommitContext* context) {
    store::IndexBatch batch = context->index->NewBatch();
    batch.RemoveManifest(save);
    return context->Write(std::move(batch));
  });
}

absl::StatusOr<RemovedSpace> Store::Impl::RemoveSave(const SaveRef& save) {
  RemovedSpace removed;
  absl::Status status = RemovePartsOf(save, &removed);
  // Last, so that the save is listed while there is anything of it.
  if (status.ok()) status = RemoveManifestOf(save);
  const store::ReclaimReport report = segments_.Reclaim();
  ESKER_RETURN_IF_ERROR(status);
  removed.disk_bytes_freed = report.disk_bytes_freed;
  removed.segments_recycled = report.segments_recycled;
  removed.recycled_bytes = report.recycled_bytes;
  return removed;
}

void Store::Impl::ReadChunk(const Hash128& hash, ReadMode mode, store::ReadDone done) {
  if (mode == ReadMode::kFromDisk) return delta_reads_->Read(hash, std::move(done));
  shared_reads_.Read(hash, std::move(done));
}

void Store::Impl::CloseRead(uint64_t lease_id) {
  leases_.Close(lease_id);
  shared_reads_.DropUnlessWanted();
}

absl::StatusOr<StoreStats> Store::Impl::Stats() {
  StoreStats stats;
  for (const store::SegmentInfo& info : segments_.List()) {
    ++stats.segments;
    stats.segment_bytes += info.segment_bytes;
    stats.live_bytes += info.live_bytes;
    if (info.state == store::SegmentInfo::State::kFree) ++stats.free_segments;
    if (info.state == store::SegmentInfo::State::kFailed) {
      stats.failed_segments.push_back(StrCat(segments_.FilePath(info.id), ": ", info.fault));
    }
  }
  ESKER_ASSIGN_OR_RETURN(stats.allocated_bytes, segments_.AllocatedBytes());
  ESKER_ASSIGN_OR_RETURN(stats.disk, disk_->Space());
  stats.reserved_bytes = sessions_.promised_bytes();
  stats.chunks = counts_.chunks;
  stats.parts = counts_.parts;
  stats.layouts = counts_.layouts;
  stats.open_saves = sessions_.OpenSaves().size();
  stats.open_reads = leases_.count();
  stats.chunks_read = io_->chunks_read();
  stats.chunk_reads_joined = shared_reads_.joined();
  return stats;
}

absl::Status Store::Impl::CheckConsistency() {
  return committer_.Run(
      [this](store::CommitContext* context) { return store::CheckStore(context, directory_->store_id()); });
}

// --- the public class ----------------------------------------------------------------------------

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() = default;

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const StoreOptions& options) {
  return Open(options, nullptr, nullptr);
}

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const StoreOptions& options, std::unique_ptr<Disk> disk,
                                                   rocksdb::Env* index_env) {
  ESKER_RETURN_IF_ERROR(CheckOptions(options));
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<store::DataDirectory> directory,
                         store::DataDirectory::Open(options.directory));
  if (disk == nullptr) {
    ESKER_ASSIGN_OR_RETURN(disk, OpenDisk(directory->segments_path(), options.engine));
  }
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<store::Index> index,
                         store::Index::Open(directory->index_path(), index_env));
  auto impl = std::make_unique<Impl>(options, std::move(directory), std::move(disk), std::move(index));
  ESKER_RETURN_IF_ERROR(impl->Recover());
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

const std::string& Store::id() const { return impl_->id(); }
std::string Store::DescribeDisk() const { return impl_->disk()->Describe(); }
BufferPool* Store::buffers() { return impl_->buffers(); }

absl::Status Store::Reserve(const PartRef& part, uint64_t raw_bytes) {
  return impl_->Reserve(part, raw_bytes);
}

absl::StatusOr<std::vector<bool>> Store::Offer(const PartRef& part, const std::vector<Hash128>& hashes) {
  return impl_->Offer(part, hashes);
}

void Store::Put(const PartRef& part, const ChunkInfo& info, Buffer record,
                std::function<void(absl::Status)> done) {
  impl_->io()->Put(part, info, std::move(record), std::move(done));
}

absl::StatusOr<SealResult> Store::Seal(const PartRef& part, std::string_view part_envelope,
                                       std::string_view layout_envelope) {
  return impl_->Seal(part, part_envelope, layout_envelope);
}

void Store::EndSave(const SaveRef& save) { impl_->EndSave(save); }
std::vector<std::pair<SaveRef, int64_t>> Store::OpenSaves() const { return impl_->sessions()->OpenSaves(); }

absl::Status Store::PutManifest(const SaveRef& save, std::string_view envelope) {
  return impl_->PutManifest(save, envelope);
}

absl::StatusOr<std::string> Store::GetManifest(const SaveRef& save) const {
  ESKER_ASSIGN_OR_RETURN(std::optional<std::string> manifest, impl_->index().GetManifest(save));
  if (manifest.has_value()) return *std::move(manifest);
  return absl::NotFoundError(StrCat("the store holds no manifest of ", save.run, "@", save.step, " (save ",
                                    absl::Hex(save.save_id), ")"));
}

absl::StatusOr<StoredPart> Store::GetPart(const SaveRef& save, uint32_t rank) const {
  return impl_->GetPart(save, rank);
}

absl::StatusOr<std::vector<uint32_t>> Store::PartRanks(const SaveRef& save) const {
  return impl_->index().PartRanks(save);
}

absl::StatusOr<std::string> Store::GetLayout(const Hash128& digest) const {
  ESKER_ASSIGN_OR_RETURN(std::optional<std::string> layout, impl_->index().GetLayout(digest));
  if (!layout.has_value()) return absl::NotFoundError(StrCat("the store holds no layout ", digest.ToHex()));
  ESKER_RETURN_IF_ERROR(CheckDigest(*layout, digest, "layout"));
  return *std::move(layout);
}

void Store::ReadChunk(const Hash128& hash, ReadMode mode, std::function<void(ChunkReadOr)> done) {
  impl_->ReadChunk(hash, mode, std::move(done));
}

absl::StatusOr<ChunkLocation> Store::Locate(const Hash128& hash) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<store::ChunkEntry> entry, impl_->index().GetChunk(hash));
  if (!entry.has_value()) return absl::NotFoundError(StrCat("the store holds no chunk ", hash.ToHex()));
  return ChunkLocation{.file = impl_->segments()->FilePath(entry->place.segment_id),
                       .offset = entry->place.offset,
                       .record_bytes = entry->record_bytes()};
}

uint64_t Store::OpenRead(const SaveRef& save) { return impl_->leases()->Open(save); }
absl::Status Store::RenewRead(uint64_t lease_id) { return impl_->leases()->Renew(lease_id); }
void Store::CloseRead(uint64_t lease_id) { impl_->CloseRead(lease_id); }
bool Store::HasReaders(const SaveRef& save) const { return impl_->leases()->HasReaders(save); }
bool Store::MayHaveUnknownReaders() const { return impl_->leases()->MayHaveUnknownReaders(); }

absl::StatusOr<std::vector<SaveRef>> Store::ListSaves() const { return impl_->index().ListSaves(); }
absl::StatusOr<RemovedSpace> Store::RemoveSave(const SaveRef& save) { return impl_->RemoveSave(save); }
absl::StatusOr<StoreStats> Store::Stats() const { return impl_->Stats(); }
absl::Status Store::CheckConsistency() { return impl_->CheckConsistency(); }

}  // namespace esker
