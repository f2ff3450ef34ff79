#include "server/store/seal_group.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

// The chunks and layouts that the group's parts name, as the index has them or will have them.
struct ChunkState {
  ChunkEntry entry;  // refs: those in the index; 0 if it is new
  uint64_t refs = 0;
  bool is_new = false;
  bool missing = false;                              // damaged: in the index, but of no use to a new part
  std::optional<ChunkEntry> damaged = std::nullopt;  // what the index has now, and `entry` takes the place of
};

class Group {
 public:
  Group(CommitContext* context, std::vector<LetGo>* let_go)
      : context_(*context), let_go_(let_go), batch_(context->index->NewBatch()) {}

  // The steps, in their order. What a part fails in is in its result; the others go on.
  void LeaveOutSealed(std::span<SealWork*> works);
  void MakeChunksDurable();
  void AddParts();
  void Commit();

 private:
  absl::Status LoadChunks();
  // The bases of new deltas, and of those that are healed.
  absl::Status LoadBases();
  bool SyncSegments();
  bool ChunksAreThere(SealWork* work) const;
  absl::Status AddLayout(const SealRequest& request);
  absl::Status AddPart(SealWork* work);
  void FailAll(const absl::Status& status);
  void LetGoOf(LetGo let_go) {
    if (!let_go.forgotten.empty() || !let_go.unreferenced.empty()) let_go_->push_back(std::move(let_go));
  }
  // Whether the batch gives the chunk a new record.
  static bool IsWritten(const ChunkState& state) {
    return (state.is_new || state.damaged.has_value()) && state.refs != state.entry.refs;
  }
  // Counts the deltas among the bases' references. Returns the bases that nothing refers to any more.
  std::vector<Hash128> ReferToBases();
  size_t ReleaseDamaged();

  CommitContext& context_;
  std::vector<LetGo>* const let_go_;
  IndexBatch batch_;
  std::vector<SealWork*> open_;
  absl::flat_hash_map<Hash128, ChunkState> chunks_;
  absl::flat_hash_map<Hash128, uint64_t> write_numbers_;  // of the new ones
  absl::flat_hash_map<Hash128, uint64_t> layout_refs_;
  uint64_t new_layouts_ = 0;
};

void Group::FailAll(const absl::Status& status) {
  for (SealWork* work : open_) work->result = status;
  open_.clear();
}

void Group::LeaveOutSealed(std::span<SealWork*> works) {
  for (SealWork* work : works) {
    absl::StatusOr<std::optional<SealResult>> sealed = FindSealed(*context_.index, *work->request);
    if (!sealed.ok()) {
      work->result = sealed.status();
    } else if (sealed->has_value()) {
      work->result = **std::move(sealed);
    } else {
      open_.push_back(work);
    }
  }
}

absl::Status Group::LoadChunks() {
  chunks_.clear();
  write_numbers_.clear();
  for (const SealWork* work : open_) {
    for (const Hash128& hash : work->request->chunks) chunks_.try_emplace(hash);
  }
  std::vector<Hash128> hashes;
  hashes.reserve(chunks_.size());
  for (const auto& [hash, state] : chunks_) hashes.push_back(hash);
  ESKER_ASSIGN_OR_RETURN(const std::vector<std::optional<ChunkEntry>> indexed,
                         context_.index->GetChunks(hashes));
  const std::vector<std::optional<WrittenChunk>> written = context_.sessions->GetWritten(hashes);
  for (size_t i = 0; i < hashes.size(); ++i) {
    ChunkState& state = chunks_[hashes[i]];
    // What is known to be damaged is as good as missing, and written anew takes its place.
    const bool is_damaged = indexed[i].has_value() && context_.sessions->IsDamaged(hashes[i]);
    if (written[i].has_value() && (is_damaged || !indexed[i].has_value())) {
      state = {.entry = {.info = written[i]->info, .place = written[i]->place, .base = written[i]->base},
               .is_new = !indexed[i].has_value(),
               .damaged = indexed[i]};
      if (indexed[i].has_value()) state.entry.refs = state.refs = indexed[i]->refs;
      write_numbers_[hashes[i]] = written[i]->write_number;
    } else if (indexed[i].has_value() && !is_damaged) {
      state = {.entry = *indexed[i], .refs = indexed[i]->refs};
    } else if (is_damaged) {
      state = {.entry = *indexed[i], .refs = indexed[i]->refs, .missing = true};
    } else {
      chunks_.erase(hashes[i]);
    }
  }
  return LoadBases();
}

absl::Status Group::LoadBases() {
  absl::flat_hash_set<Hash128> unknown;
  for (const auto& [hash, state] : chunks_) {
    const bool is_new_delta = (state.is_new || state.damaged.has_value()) && state.entry.is_delta();
    if (is_new_delta && !chunks_.contains(state.entry.base)) unknown.insert(state.entry.base);
    const bool was_delta = state.damaged.has_value() && state.damaged->is_delta();
    if (was_delta && !chunks_.contains(state.damaged->base)) unknown.insert(state.damaged->base);
  }
  const std::vector<Hash128> hashes(unknown.begin(), unknown.end());
  ESKER_ASSIGN_OR_RETURN(const std::vector<std::optional<ChunkEntry>> indexed,
                         context_.index->GetChunks(hashes));
  for (size_t i = 0; i < hashes.size(); ++i) {
    // Each was pinned when its delta was put, or is referred to: it can't be gone.
    if (!indexed[i].has_value()) {
      return absl::InternalError(StrCat("index: chunk ", hashes[i].ToHex(), ", a delta's base, is gone"));
    }
    chunks_[hashes[i]] = {.entry = *indexed[i], .refs = indexed[i]->refs};
  }
  return absl::OkStatus();
}

// False if a segment failed: then its chunks that were not durable are forgotten.
bool Group::SyncSegments() {
  std::map<uint64_t, uint64_t> wanted;  // segment to write number
  const auto want = [&](const Hash128& hash) {
    const auto number = write_numbers_.find(hash);
    if (number == write_numbers_.end()) return;
    uint64_t& last = wanted[chunks_.at(hash).entry.place.segment_id];
    last = std::max(last, number->second);
  };
  for (const SealWork* work : open_) {
    for (const Hash128& hash : work->request->chunks) {
      want(hash);
      const ChunkEntry& entry = chunks_.at(hash).entry;
      if (entry.is_delta()) want(entry.base);
    }
  }
  bool all_synced = true;
  for (const auto& [segment_id, number] : wanted) {
    const absl::Status status = context_.segments->SyncUpTo(segment_id, number);
    if (status.ok()) continue;
    all_synced = false;
    LetGo forgotten =
        context_.sessions->ForgetUnsynced(segment_id, context_.segments->synced_writes(segment_id));
    spdlog::warn("store: {} chunks in {} are not durable and have to be sent again",
                 forgotten.forgotten.size(), context_.segments->FilePath(segment_id));
    LetGoOf(std::move(forgotten));
  }
  return all_synced;
}

void Group::MakeChunksDurable() {
  while (!open_.empty()) {
    absl::Status status = LoadChunks();
    if (!status.ok()) return FailAll(status);
    // Only parts that can be sealed are worth an fdatasync.
    open_.erase(
        std::remove_if(open_.begin(), open_.end(), [&](SealWork* work) { return !ChunksAreThere(work); }),
        open_.end());
    if (SyncSegments()) return;
  }
}

bool Group::ChunksAreThere(SealWork* work) const {
  const SealRequest& request = *work->request;
  SealResult result;
  for (size_t i = 0; i < request.chunks.size(); ++i) {
    const auto chunk = chunks_.find(request.chunks[i]);
    if (chunk == chunks_.end() || chunk->second.missing) {
      result.missing.push_back(request.chunks[i]);
    } else if (chunk->second.entry.info.raw_bytes != request.chunk_raw_bytes[i]) {
      work->result = absl::InvalidArgumentError(StrCat(
          "part: chunk ", request.chunks[i].ToHex(), " should have ", request.chunk_raw_bytes[i],
          " raw bytes, but the store holds one of that name with ", chunk->second.entry.info.raw_bytes));
      return false;
    }
  }
  if (result.missing.empty()) return true;
  work->result = std::move(result);
  return false;
}

absl::Status Group::AddLayout(const SealRequest& request) {
  const auto [layout, unseen] = layout_refs_.try_emplace(request.layout_digest);
  if (unseen) {
    absl::StatusOr<uint64_t> refs = context_.index->GetLayoutRefs(request.layout_digest);
    if (!refs.ok()) {
      layout_refs_.erase(layout);
      return refs.status();
    }
    layout->second = *refs;
  }
  std::optional<std::string_view> envelope;
  if (layout->second++ == 0) {
    envelope = request.layout_envelope;
    ++new_layouts_;
  }
  batch_.SetLayout(request.layout_digest, layout->second, envelope);
  return absl::OkStatus();
}

absl::Status Group::AddPart(SealWork* work) {
  const SealRequest& request = *work->request;
  ESKER_RETURN_IF_ERROR(AddLayout(request));
  PartEntry entry{.attempt = request.part.attempt,
                  .raw_bytes = request.raw_bytes,
                  .sealed_unix_ms = context_.clock->UnixMillis(),
                  .part_digest = request.part_digest,
                  .layout_digest = request.layout_digest};
  for (const Hash128& hash : request.chunks) {
    ChunkState& state = chunks_.at(hash);
    entry.stored_bytes += state.entry.info.stored_bytes;
    if (state.is_new && state.refs == 0) entry.new_stored_bytes += state.entry.info.stored_bytes;
    ++state.refs;
  }
  batch_.PutPart(request.key(), entry, request.part_envelope);
  SealResult result;
  FillPartEntry(request.part.rank, entry, &result.entry);
  work->result = std::move(result);
  return absl::OkStatus();
}

void Group::AddParts() {
  std::vector<SealWork*> added;
  for (SealWork* work : open_) {
    const absl::Status status = AddPart(work);
    if (status.ok()) {
      added.push_back(work);
    } else {
      work->result = status;
    }
  }
  open_ = std::move(added);
}

std::vector<Hash128> Group::ReferToBases() {
  std::vector<Hash128> referred;
  std::vector<Hash128> dropped;
  for (const auto& [hash, state] : chunks_) {
    if (!IsWritten(state)) continue;
    if (state.entry.is_delta()) referred.push_back(state.entry.base);
    if (state.damaged.has_value() && state.damaged->is_delta()) dropped.push_back(state.damaged->base);
  }
  for (const Hash128& base : referred) ++chunks_.at(base).refs;
  for (const Hash128& base : dropped) --chunks_.at(base).refs;
  std::erase_if(dropped, [&](const Hash128& base) { return chunks_.at(base).refs > 0; });
  return dropped;
}

// The records that others took the place of. Returns how many.
size_t Group::ReleaseDamaged() {
  std::vector<ReleasedPlace> places;
  for (const auto& [hash, state] : chunks_) {
    if (!state.damaged.has_value() || state.refs == state.entry.refs) continue;
    spdlog::info("store: chunk {} was damaged and is healed: {} parts name it", hash.ToHex(), state.refs);
    context_.sessions->Healed(hash);
    places.push_back({.segment_id = state.damaged->place.segment_id,
                      .extent = {state.damaged->place.offset, state.damaged->record_bytes()},
                      .was_live = true});
  }
  if (!places.empty()) {
    context_.segments->Release(places);
    context_.segments->ScheduleReclaim();
  }
  return places.size();
}

void Group::Commit() {
  if (open_.empty()) return;
  LetGo bases;
  bases.unreferenced = ReferToBases();
  std::vector<Hash128> indexed;
  std::vector<Hash128> referenced;
  for (const auto& [hash, state] : chunks_) {
    if (state.refs == state.entry.refs) continue;  // of parts that were left out
    if (state.is_new || state.damaged.has_value()) {
      if (state.damaged.has_value()) batch_.RemoveChunk(*state.damaged);
      ChunkEntry entry = state.entry;
      entry.refs = state.refs;
      batch_.AddChunk(entry);
      indexed.push_back(hash);
    } else {
      batch_.SetRefs(state.entry, state.refs);
    }
    if (!state.is_new && state.entry.refs == 0) referenced.push_back(hash);
  }
  const absl::Status status = context_.Write(std::move(batch_));
  if (!status.ok()) return FailAll(status);
  for (const Hash128& hash : indexed) {
    const ChunkEntry& entry = chunks_.at(hash).entry;
    context_.segments->AddLive(entry.place.segment_id, entry.record_bytes());
  }
  context_.sessions->Referenced(referenced);
  LetGoOf(context_.sessions->Indexed(indexed));
  LetGoOf(std::move(bases));
  context_.counts->chunks += indexed.size() - ReleaseDamaged();
  context_.counts->parts += open_.size();
  context_.counts->layouts += new_layouts_;
  for (const SealWork* work : open_) LetGoOf(context_.sessions->EndPart(work->request->part));
}

}  // namespace

void SealTogether(CommitContext* context, std::span<SealWork*> works, std::vector<LetGo>* let_go) {
  Group group(context, let_go);
  group.LeaveOutSealed(works);
  group.MakeChunksDurable();
  group.AddParts();
  group.Commit();
}

}  // namespace esker::store
