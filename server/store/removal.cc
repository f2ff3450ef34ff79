#include "server/store/removal.h"

#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

// Of one batch, so that seals don't wait long behind it.
constexpr size_t kMaxChunksAtOnce = 16384;

// Chunks whose counts of references are lowered, in one batch. Those that end at 0 are removed from the
// index, unless somebody pins them; and a delta that is removed lets go of its base.
class Drops {
 public:
  explicit Drops(CommitContext* context) : context_(*context) {}

  // `count` references to each of them go. kInternal if there are not as many.
  absl::Status Drop(const absl::flat_hash_map<Hash128, uint64_t>& counts);
  // Into the batch. Once.
  absl::Status AddTo(IndexBatch* batch);

  // After the batch was written, or failed. Returns those that were pinned, and whose last pin went
  // meanwhile.
  std::vector<Hash128> Finish(bool written);

  const std::vector<ChunkEntry>& dying() const { return dying_; }

 private:
  struct Change {
    ChunkEntry entry;  // as the index has it
    uint64_t refs = 0;
  };

  // Removes what has no references, of deltas or of others, and is not pinned.
  void Remove(bool deltas, IndexBatch* batch);

  CommitContext& context_;
  absl::flat_hash_map<Hash128, Change> changes_;
  std::vector<ChunkEntry> dying_;
  std::vector<Hash128> kept_;
};

absl::Status Drops::Drop(const absl::flat_hash_map<Hash128, uint64_t>& counts) {
  std::vector<Hash128> hashes;
  for (const auto& [hash, count] : counts) {
    if (!changes_.contains(hash)) hashes.push_back(hash);
  }
  ESKER_ASSIGN_OR_RETURN(const std::vector<std::optional<ChunkEntry>> entries,
                         context_.index->GetChunks(hashes));
  for (const std::optional<ChunkEntry>& entry : entries) {
    if (entry.has_value()) changes_[entry->info.hash] = {*entry, entry->refs};
  }
  for (const auto& [hash, count] : counts) {
    const auto change = changes_.find(hash);
    const uint64_t refs = change == changes_.end() ? 0 : change->second.refs;
    if (refs < count) {
      return absl::InternalError(StrCat("index: chunk ", hash.ToHex(), " has ", refs, " references, but ",
                                        count, " that refer to it are removed"));
    }
    if (change != changes_.end()) change->second.refs -= count;
  }
  return absl::OkStatus();
}

absl::Status Drops::AddTo(IndexBatch* batch) {
  Remove(/*deltas=*/true, batch);
  absl::flat_hash_map<Hash128, uint64_t> bases;
  for (const ChunkEntry& delta : dying_) ++bases[delta.base];
  ESKER_RETURN_IF_ERROR(Drop(bases));
  Remove(/*deltas=*/false, batch);
  for (const auto& [hash, change] : changes_) {
    if (change.refs > 0) batch->SetRefs(change.entry, change.refs);
  }
  return absl::OkStatus();
}

void Drops::Remove(bool deltas, IndexBatch* batch) {
  std::vector<ChunkEntry> entries;
  std::vector<Hash128> hashes;
  for (const auto& [hash, change] : changes_) {
    if (change.refs > 0 || change.entry.is_delta() != deltas) continue;
    entries.push_back(change.entry);
    hashes.push_back(hash);
  }
  const std::vector<bool> marked = context_.sessions->MarkDying(hashes);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (marked[i]) {
      batch->RemoveChunk(entries[i]);
      dying_.push_back(entries[i]);
    } else {
      batch->SetRefs(entries[i], 0);
      kept_.push_back(hashes[i]);
    }
  }
}

std::vector<Hash128> Drops::Finish(bool written) {
  std::vector<Hash128> hashes;
  std::vector<ReleasedPlace> places;
  for (const ChunkEntry& entry : dying_) {
    hashes.push_back(entry.info.hash);
    places.push_back({.segment_id = entry.place.segment_id,
                      .extent = {entry.place.offset, entry.record_bytes()},
                      .was_live = true});
  }
  if (written) {
    context_.segments->Release(places);
    context_.counts->chunks -= dying_.size();
  }
  context_.sessions->EndDying(hashes);
  if (!written) return {};
  return context_.sessions->KeepUnreferenced(kept_);
}

absl::StatusOr<std::vector<Hash128>> DistinctChunks(const Index& index, const PartKey& key) {
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> envelope, index.GetPartEnvelope(key));
  const std::string name = StrCat("part of ", key.save.run, "@", key.save.step, " rank ", key.rank);
  if (!envelope.has_value()) return absl::DataLossError(StrCat("index: ", name, " has no envelope"));
  absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, *envelope);
  ESKER_RETURN_IF_ERROR(Annotate(part.status(), StrCat("index: ", name)));
  const std::string& bytes = part->chunk_hashes();
  absl::flat_hash_set<Hash128> distinct;
  for (size_t at = 0; at < bytes.size(); at += sizeof(Hash128)) {
    ESKER_ASSIGN_OR_RETURN(
        const Hash128 hash,
        HashFromBytes(std::string_view(bytes).substr(at, sizeof(Hash128)), "index: chunk_hashes"));
    distinct.insert(hash);
  }
  return std::vector<Hash128>(distinct.begin(), distinct.end());
}

// How many of the batch's parts name each chunk and each layout.
struct Uses {
  absl::flat_hash_map<Hash128, uint64_t> chunks;
  absl::flat_hash_map<Hash128, uint64_t> layouts;
  uint64_t parts = 0;
  size_t ranks_done = 0;
};

absl::StatusOr<Uses> RemovePartRecords(const Index& index, const SaveRef& save,
                                       std::span<const uint32_t> ranks, IndexBatch* batch) {
  Uses uses;
  for (const uint32_t rank : ranks) {
    if (uses.chunks.size() >= kMaxChunksAtOnce) break;
    ++uses.ranks_done;
    const PartKey key{save, rank};
    ESKER_ASSIGN_OR_RETURN(const std::optional<PartEntry> part, index.GetPart(key));
    if (!part.has_value()) continue;
    ESKER_ASSIGN_OR_RETURN(const std::vector<Hash128> chunks, DistinctChunks(index, key));
    for (const Hash128& hash : chunks) ++uses.chunks[hash];
    ++uses.layouts[part->layout_digest];
    ++uses.parts;
    batch->RemovePart(key);
  }
  return uses;
}

absl::StatusOr<uint64_t> DropLayouts(const Index& index, const Uses& uses, IndexBatch* batch) {
  uint64_t removed = 0;
  for (const auto& [digest, count] : uses.layouts) {
    ESKER_ASSIGN_OR_RETURN(const uint64_t refs, index.GetLayoutRefs(digest));
    if (refs < count) {
      return absl::InternalError(StrCat("index: layout ", digest.ToHex(), " has ", refs, " references, but ",
                                        count, " parts that name it are removed"));
    }
    batch->SetLayout(digest, refs - count, std::nullopt);
    if (refs == count) ++removed;
  }
  return removed;
}

// Writes the batch with the drops in it. Returns what Drops::Finish does.
absl::StatusOr<std::vector<Hash128>> WriteDrops(CommitContext* context, Drops* drops, IndexBatch batch) {
  absl::Status status = drops->AddTo(&batch);
  if (status.ok()) status = context->Write(std::move(batch));
  std::vector<Hash128> unpinned = drops->Finish(status.ok());
  ESKER_RETURN_IF_ERROR(status);
  return unpinned;
}

}  // namespace

absl::StatusOr<RemovedParts> RemoveParts(CommitContext* context, const SaveRef& save,
                                         std::span<const uint32_t> ranks, std::vector<Hash128>* unpinned) {
  const Index& index = *context->index;
  IndexBatch batch = index.NewBatch();
  ESKER_ASSIGN_OR_RETURN(const Uses uses, RemovePartRecords(index, save, ranks, &batch));
  if (uses.parts == 0) return RemovedParts{.ranks_done = uses.ranks_done};
  ESKER_ASSIGN_OR_RETURN(const uint64_t layouts, DropLayouts(index, uses, &batch));
  Drops drops(context);
  ESKER_RETURN_IF_ERROR(drops.Drop(uses.chunks));
  ESKER_ASSIGN_OR_RETURN(*unpinned, WriteDrops(context, &drops, std::move(batch)));
  context->counts->parts -= uses.parts;
  context->counts->layouts -= layouts;
  RemovedParts removed{.parts = uses.parts, .chunks = drops.dying().size(), .ranks_done = uses.ranks_done};
  for (const ChunkEntry& entry : drops.dying()) removed.chunk_bytes += entry.record_bytes();
  return removed;
}

absl::Status Reap(CommitContext* context, std::span<const Hash128> hashes) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<std::optional<ChunkEntry>> entries,
                         context->index->GetChunks(hashes));
  absl::flat_hash_map<Hash128, uint64_t> unreferenced;
  for (const std::optional<ChunkEntry>& entry : entries) {
    if (entry.has_value() && entry->refs == 0) unreferenced[entry->info.hash] = 0;
  }
  if (unreferenced.empty()) return absl::OkStatus();
  Drops drops(context);
  ESKER_RETURN_IF_ERROR(drops.Drop(unreferenced));
  ESKER_ASSIGN_OR_RETURN(const std::vector<Hash128> unpinned,
                         WriteDrops(context, &drops, context->index->NewBatch()));
  context->segments->ScheduleReclaim();
  return unpinned.empty() ? absl::OkStatus() : Reap(context, unpinned);
}

}  // namespace esker::store
