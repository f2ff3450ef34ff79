#include "server/store/consistency.h"

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/segment_header.h"
#include "server/store/aligned_block.h"

namespace esker::store {
namespace {

constexpr size_t kMaxFaultsShown = 10;
// What a file system adds to a file's blocks for itself: its extent tree, which grows with the number of
// holes.
constexpr uint64_t kFileOverheadBytes = 64 << 10;
constexpr uint64_t kHoleOverheadBytes = 64;

class Audit {
 public:
  Audit(CommitContext* context, const StoreId& store_id) : context_(*context), store_id_(store_id) {}

  absl::Status Run();

 private:
  template <typename... Parts>
  void Fault(const Parts&... parts) {
    ++fault_count_;
    if (faults_.size() < kMaxFaultsShown) faults_.push_back(StrCat(parts...));
  }

  // Index.
  absl::Status CountReferences();
  absl::Status CheckChunks();
  absl::Status CheckLayouts();
  absl::Status CheckUnreferenced();
  // Index against segments.
  absl::Status CheckPlaces();
  void CheckOrder(const PlaceEntry& place, const std::optional<PlaceEntry>& before);
  // Segments against files.
  absl::Status CheckSegments();
  absl::Status CheckFile(const SegmentInfo& info);

  struct Counted {
    uint64_t bytes = 0;
    uint64_t records = 0;
  };

  CommitContext& context_;
  const StoreId store_id_;
  std::vector<std::string> faults_;
  uint64_t fault_count_ = 0;
  absl::flat_hash_map<Hash128, uint64_t> chunk_refs_;
  absl::flat_hash_map<Hash128, uint64_t> layout_refs_;
  absl::flat_hash_set<Hash128> unreferenced_;
  std::map<uint64_t, SegmentInfo> segments_;
  std::map<uint64_t, Counted> live_;
};

absl::Status Audit::Run() {
  for (SegmentInfo& info : context_.segments->List()) segments_[info.id] = std::move(info);
  ESKER_RETURN_IF_ERROR(CountReferences());
  ESKER_RETURN_IF_ERROR(CheckChunks());
  ESKER_RETURN_IF_ERROR(CheckLayouts());
  ESKER_RETURN_IF_ERROR(CheckUnreferenced());
  ESKER_RETURN_IF_ERROR(CheckPlaces());
  ESKER_RETURN_IF_ERROR(CheckSegments());
  if (fault_count_ == 0) return absl::OkStatus();
  return absl::InternalError(StrCat("the store disagrees with itself in ", fault_count_,
                                    " points: ", absl::StrJoin(faults_, "; "),
                                    fault_count_ > faults_.size() ? "; …" : ""));
}

absl::Status Audit::CountReferences() {
  uint64_t parts = 0;
  ESKER_RETURN_IF_ERROR(context_.index->ForEachPart([&](const PartKey& key,
                                                        const PartEntry& entry) -> absl::Status {
    ++parts;
    const std::string name = StrCat("part of ", key.save.run, "@", key.save.step, " rank ", key.rank);
    ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> envelope, context_.index->GetPartEnvelope(key));
    if (!envelope.has_value()) {
      Fault(name, " has no envelope");
      return absl::OkStatus();
    }
    if (HashOf(AsBytes(*envelope)) != entry.part_digest) Fault(name, " is not what its digest says");
    const absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, *envelope);
    if (!part.ok()) {
      Fault(name, ": ", part.status().message());
      return absl::OkStatus();
    }
    absl::flat_hash_set<std::string_view> distinct;
    const std::string_view hashes = part->chunk_hashes();
    for (size_t at = 0; at + sizeof(Hash128) <= hashes.size(); at += sizeof(Hash128)) {
      const std::string_view bytes = hashes.substr(at, sizeof(Hash128));
      if (!distinct.insert(bytes).second) continue;
      ESKER_ASSIGN_OR_RETURN(const Hash128 hash, HashFromBytes(bytes, "chunk"));
      ++chunk_refs_[hash];
    }
    ++layout_refs_[entry.layout_digest];
    return absl::OkStatus();
  }));
  ESKER_RETURN_IF_ERROR(context_.index->ForEachChunk([&](const ChunkEntry& entry) -> absl::Status {
    if (!entry.is_delta()) return absl::OkStatus();
    ++chunk_refs_[entry.base];
    ESKER_ASSIGN_OR_RETURN(const std::optional<ChunkEntry> base, context_.index->GetChunk(entry.base));
    if (base.has_value() && base->is_delta()) {
      Fault("chunk ", entry.info.hash.ToHex(), " is a delta of chunk ", entry.base.ToHex(),
            ", which is one itself");
    }
    return absl::OkStatus();
  }));
  if (parts != context_.counts->parts)
    Fault("there are ", parts, " parts, counted were ", context_.counts->parts.load());
  return absl::OkStatus();
}

absl::Status Audit::CheckChunks() {
  uint64_t chunks = 0;
  absl::flat_hash_map<Hash128, uint64_t> unseen = chunk_refs_;
  ESKER_RETURN_IF_ERROR(context_.index->ForEachChunk([&](const ChunkEntry& entry) {
    ++chunks;
    const std::string name = StrCat("chunk ", entry.info.hash.ToHex());
    const auto counted = unseen.find(entry.info.hash);
    const uint64_t refs = counted == unseen.end() ? 0 : counted->second;
    if (counted != unseen.end()) unseen.erase(counted);
    if (entry.refs != refs)
      Fault(name, " has ", entry.refs, " references, but ", refs, " parts and deltas name it");
    if (entry.refs == 0) unreferenced_.insert(entry.info.hash);
    const auto segment = segments_.find(entry.place.segment_id);
    if (segment == segments_.end()) {
      Fault(name, " lies in segment ", entry.place.segment_id, ", which is not there");
    } else if (segment->second.generation != entry.place.generation && segment->second.fault.empty()) {
      Fault(name, " lies in generation ", entry.place.generation, " of segment ", entry.place.segment_id,
            ", which has generation ", segment->second.generation);
    }
    return absl::OkStatus();
  }));
  for (const auto& [hash, refs] : unseen)
    Fault("chunk ", hash.ToHex(), " is named by ", refs, " parts and deltas, but is not there");
  if (chunks != context_.counts->chunks) {
    Fault("there are ", chunks, " chunks, counted were ", context_.counts->chunks.load());
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckLayouts() {
  uint64_t layouts = 0;
  ESKER_RETURN_IF_ERROR(
      context_.index->ForEachLayout([&](const Hash128& digest, uint64_t refs) -> absl::Status {
        ++layouts;
        if (refs != layout_refs_[digest]) {
          Fault("layout ", digest.ToHex(), " has ", refs, " references, but ", layout_refs_[digest],
                " parts name it");
        }
        layout_refs_.erase(digest);
        ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> envelope, context_.index->GetLayout(digest));
        if (!envelope.has_value() || HashOf(AsBytes(*envelope)) != digest) {
          Fault("layout ", digest.ToHex(), " is not there, or not what its digest says");
        }
        return absl::OkStatus();
      }));
  for (const auto& [digest, refs] : layout_refs_) {
    Fault("layout ", digest.ToHex(), " is named by ", refs, " parts, but is not there");
  }
  if (layouts != context_.counts->layouts) {
    Fault("there are ", layouts, " layouts, counted were ", context_.counts->layouts.load());
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckUnreferenced() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<Hash128> listed, context_.index->ListUnreferenced(SIZE_MAX));
  for (const Hash128& hash : listed) {
    if (unreferenced_.erase(hash) == 0)
      Fault("chunk ", hash.ToHex(), " is listed as unreferenced, and is not");
  }
  for (const Hash128& hash : unreferenced_) {
    Fault("chunk ", hash.ToHex(), " is unreferenced, and not listed as such: it would never be removed");
  }
  return absl::OkStatus();
}

void Audit::CheckOrder(const PlaceEntry& place, const std::optional<PlaceEntry>& before) {
  const std::string name = StrCat("the record in segment ", place.segment_id, " at ", place.offset);
  if (before.has_value() && before->segment_id == place.segment_id && before->end() > place.offset) {
    Fault(name, " overlaps the one at ", before->offset, ", which ends at ", before->end());
  }
  const auto segment = segments_.find(place.segment_id);
  if (segment == segments_.end()) return;  // CheckChunks said so
  const SegmentInfo& info = segment->second;
  if (place.offset < kFirstRecordOffset || place.end() > info.tail) {
    Fault(name, " ends at ", place.end(), ", but records lie between ", kFirstRecordOffset, " and ",
          info.tail);
  }
}

absl::Status Audit::CheckPlaces() {
  std::optional<PlaceEntry> before;
  uint64_t places = 0;
  ESKER_RETURN_IF_ERROR(context_.index->ForEachPlace([&](const PlaceEntry& place) -> absl::Status {
    ++places;
    CheckOrder(place, before);
    ESKER_ASSIGN_OR_RETURN(const std::optional<ChunkEntry> chunk, context_.index->GetChunk(place.hash));
    if (!chunk.has_value() || chunk->place.segment_id != place.segment_id ||
        chunk->place.offset != place.offset || chunk->record_bytes() != place.record_bytes) {
      Fault("segment ", place.segment_id, " at ", place.offset, " should hold ", place.record_bytes,
            " bytes of chunk ", place.hash.ToHex(), ", whose entry says otherwise");
    }
    Counted& counted = live_[place.segment_id];
    counted.bytes += place.record_bytes;
    ++counted.records;
    before = place;
    return absl::OkStatus();
  }));
  // Each place has a chunk that points back at it, so equal numbers mean that each chunk has a place.
  if (places != context_.counts->chunks) {
    Fault("there are ", places, " places for ", context_.counts->chunks.load(), " chunks");
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckSegments() {
  for (const auto& [id, info] : segments_) {
    const uint64_t live_bytes = live_[id].bytes;
    if (info.live_bytes != live_bytes || info.used_bytes < live_bytes) {
      Fault("segment ", id, " has ", live_bytes, " live bytes, counted were ", info.live_bytes, ", used ",
            info.used_bytes);
    }
    if (info.unreadable) continue;
    ESKER_RETURN_IF_ERROR(CheckFile(info));
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckFile(const SegmentInfo& info) {
  const std::string path = context_.segments->FilePath(info.id);
  const absl::StatusOr<std::shared_ptr<DiskFile>> file = context_.segments->Open(info.id);
  if (!file.ok()) {
    Fault(file.status().message());
    return absl::OkStatus();
  }
  if (info.fault.empty()) {
    const AlignedBlock block;
    ESKER_RETURN_IF_ERROR((*file)->Read(0, block.bytes()));
    const absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader(block.bytes());
    if (!header.ok()) {
      Fault(path, ": ", header.status().message());
    } else if (header->store_id != store_id_ || header->segment_id != info.id ||
               header->generation != info.generation || header->segment_bytes != info.segment_bytes) {
      Fault(path, ": its header is not that of segment ", info.id, " generation ", info.generation);
    }
  }
  if (info.state == SegmentInfo::State::kFree || !context_.segments->can_punch()) return absl::OkStatus();
  uint64_t expected_bytes = kFirstRecordOffset + info.used_bytes;
  if (info.state == SegmentInfo::State::kActive) expected_bytes += info.segment_bytes - info.tail;
  for (const Extent& extent : context_.segments->Dead(info.id)) expected_bytes += extent.bytes;
  ESKER_ASSIGN_OR_RETURN(const uint64_t allocated_bytes, (*file)->AllocatedBytes());
  const uint64_t overhead_bytes = kFileOverheadBytes + kHoleOverheadBytes * live_[info.id].records;
  if (allocated_bytes > expected_bytes + overhead_bytes) {
    Fault(path, " takes ", allocated_bytes, " bytes of disk, expected are at most ", expected_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckStore(CommitContext* context, const StoreId& store_id) {
  return context->segments->WithFilesAtRest([&] { return Audit(context, store_id).Run(); });
}

}  // namespace esker::store
