#include "server/store/recovery.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "format/segment_header.h"
#include "server/store/aligned_block.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

constexpr size_t kUnreferencedAtOnce = 1024;

// What the index says of a segment.
struct LiveBytes {
  uint64_t bytes = 0;
  uint64_t end = kFirstRecordOffset;  // of the last live record
};

// What the disk says of a segment.
struct FileState {
  std::shared_ptr<DiskFile> file{};  // null: gone, or not to be read
  uint64_t generation = 0;
  uint64_t file_bytes = 0;
  uint64_t allocated_bytes = 0;
  bool is_blank = false;  // begun, but its header was never written
  std::string fault{};    // empty: a segment of this store, whole
};

class Recovery {
 public:
  Recovery(CommitContext* context, Disk* disk, const StoreId& store_id)
      : context_(*context), disk_(disk), store_id_(store_id) {}

  absl::Status Run();

 private:
  absl::Status CheckStoreId();
  absl::Status RemoveUnreferenced();
  absl::Status CountIndex();
  absl::Status ListFiles();
  absl::Status LoadFailures();

  absl::StatusOr<FileState> Inspect(uint64_t segment_id) const;
  void CheckHeader(uint64_t segment_id, FileState* state) const;
  void AdoptSegment(uint64_t segment_id);
  // Takes a file over, or leaves it alone, of which the index names no record.
  void AdoptEmpty(uint64_t segment_id, const FileState& state);
  void AdoptLive(uint64_t segment_id, const LiveBytes& live, FileState state);

  absl::Status ReclaimDeadSpace();
  absl::StatusOr<std::vector<Extent>> Gaps(uint64_t segment_id, uint64_t end) const;
  absl::Status ActivateLongestTail();

  CommitContext& context_;
  Disk* const disk_;
  const StoreId store_id_;
  std::map<uint64_t, LiveBytes> live_;
  std::set<uint64_t> files_;
  std::map<uint64_t, std::string> failures_;

  // Segments whose records fill less than their files take.
  struct Slack {
    uint64_t segment_id;
    uint64_t end;  // of its records
    uint64_t segment_bytes;
    uint64_t live_bytes;

    uint64_t tail_bytes() const { return segment_bytes - end; }
    uint64_t needed_bytes() const { return kFirstRecordOffset + live_bytes; }
  };
  std::vector<Slack> slack_;
  std::optional<Slack> longest_tail_;
  ReclaimReport report_;
};

absl::Status Recovery::Run() {
  ESKER_RETURN_IF_ERROR(CheckStoreId());
  ESKER_RETURN_IF_ERROR(RemoveUnreferenced());
  ESKER_RETURN_IF_ERROR(CountIndex());
  ESKER_RETURN_IF_ERROR(ListFiles());
  ESKER_RETURN_IF_ERROR(LoadFailures());
  std::set<uint64_t> ids = files_;
  for (const auto& [id, live] : live_) ids.insert(id);
  for (const uint64_t id : ids) AdoptSegment(id);
  ESKER_RETURN_IF_ERROR(ActivateLongestTail());
  ESKER_RETURN_IF_ERROR(ReclaimDeadSpace());
  spdlog::info("store: {} segments, {} chunks, {} parts, {} layouts", context_.segments->List().size(),
               context_.counts->chunks.load(), context_.counts->parts.load(),
               context_.counts->layouts.load());
  return absl::OkStatus();
}

absl::Status Recovery::CheckStoreId() {
  const std::string_view own(reinterpret_cast<const char*>(store_id_.data()), store_id_.size());
  ESKER_ASSIGN_OR_RETURN(const std::optional<std::string> found, context_.index->GetStoreId());
  if (!found.has_value()) {
    IndexBatch batch = context_.index->NewBatch();
    batch.PutStoreId(own);
    return context_.Write(std::move(batch));
  }
  if (*found == own) return absl::OkStatus();
  return absl::DataLossError(StrCat("the index is another store's: FORMAT says ", StoreIdText(store_id_),
                                    ", the index says ", Printable(*found),
                                    ": put back the files that belong together"));
}

// They were kept for somebody who is no more.
absl::Status Recovery::RemoveUnreferenced() {
  while (true) {
    ESKER_ASSIGN_OR_RETURN(const std::vector<Hash128> hashes,
                           context_.index->ListUnreferenced(kUnreferencedAtOnce));
    if (hashes.empty()) return absl::OkStatus();
    ESKER_ASSIGN_OR_RETURN(const std::vector<std::optional<ChunkEntry>> entries,
                           context_.index->GetChunks(hashes));
    IndexBatch batch = context_.index->NewBatch();
    std::map<Hash128, uint64_t> bases;  // and how many deltas let go of each
    for (size_t i = 0; i < hashes.size(); ++i) {
      if (entries[i].has_value() && entries[i]->refs == 0) {
        batch.RemoveChunk(*entries[i]);
        if (entries[i]->is_delta()) ++bases[entries[i]->base];
      } else {
        batch.UnlistUnreferenced(hashes[i]);
      }
    }
    for (const auto& [hash, count] : bases) {
      ESKER_ASSIGN_OR_RETURN(const std::optional<ChunkEntry> base, context_.index->GetChunk(hash));
      if (!base.has_value() || base->refs < count) {
        return absl::DataLossError(StrCat("index: chunk ", hash.ToHex(), " is the base of ", count,
                                          " deltas, but has not as many references"));
      }
      batch.SetRefs(*base, base->refs - count);  // at 0 it is listed, and has its turn
    }
    ESKER_RETURN_IF_ERROR(context_.Write(std::move(batch)));
  }
}

absl::Status Recovery::CountIndex() {
  uint64_t chunks = 0;
  uint64_t parts = 0;
  uint64_t layouts = 0;
  ESKER_RETURN_IF_ERROR(context_.index->ForEachPlace([&](const PlaceEntry& place) {
    LiveBytes& live = live_[place.segment_id];
    live.bytes += place.record_bytes;
    live.end = std::max(live.end, place.end());
    ++chunks;
    return absl::OkStatus();
  }));
  ESKER_RETURN_IF_ERROR(context_.index->ForEachPart([&](const PartKey&, const PartEntry&) {
    ++parts;
    return absl::OkStatus();
  }));
  ESKER_RETURN_IF_ERROR(context_.index->ForEachLayout([&](const Hash128&, uint64_t) {
    ++layouts;
    return absl::OkStatus();
  }));
  context_.counts->chunks = chunks;
  context_.counts->parts = parts;
  context_.counts->layouts = layouts;
  return absl::OkStatus();
}

absl::Status Recovery::ListFiles() {
  ESKER_ASSIGN_OR_RETURN(const std::vector<std::string> names, disk_->List());
  for (const std::string& name : names) {
    if (const std::optional<uint64_t> id = SegmentIdFromFileName(name)) {
      files_.insert(*id);
    } else {
      spdlog::warn("store: segments/{} is not a segment; it is left alone", Printable(name));
    }
  }
  return absl::OkStatus();
}

absl::Status Recovery::LoadFailures() {
  IndexBatch batch = context_.index->NewBatch();
  ESKER_RETURN_IF_ERROR(context_.index->ForEachFailedSegment([&](uint64_t id, std::string_view why) {
    if (files_.contains(id) || live_.contains(id)) {
      failures_.emplace(id, why);
    } else {
      batch.RemoveFailedSegment(id);  // it was removed, and then there was a crash
    }
    return absl::OkStatus();
  }));
  return batch.empty() ? absl::OkStatus() : context_.Write(std::move(batch));
}

// --- files ---------------------------------------------------------------------------------------

absl::StatusOr<FileState> Recovery::Inspect(uint64_t segment_id) const {
  FileState state;
  absl::StatusOr<std::unique_ptr<DiskFile>> opened =
      disk_->Open(SegmentFileName(segment_id), Disk::OpenMode::kExisting);
  if (absl::IsNotFound(opened.status())) {
    state.fault = "the file is gone";
    return state;
  }
  ESKER_RETURN_IF_ERROR(opened.status());
  state.file = *std::move(opened);
  ESKER_ASSIGN_OR_RETURN(state.file_bytes, state.file->Size());
  ESKER_ASSIGN_OR_RETURN(state.allocated_bytes, state.file->AllocatedBytes());
  CheckHeader(segment_id, &state);
  return state;
}

void Recovery::CheckHeader(uint64_t segment_id, FileState* state) const {
  if (state->file_bytes < kFirstRecordOffset) {
    state->is_blank = true;
    state->fault = StrCat("the file has ", state->file_bytes, " bytes, too few for a header");
    return;
  }
  const AlignedBlock block;
  const MutableBytes bytes = block.bytes();
  if (absl::Status read = state->file->Read(0, bytes); !read.ok()) {
    state->fault = std::string(read.message());
    return;
  }
  state->is_blank = std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
  const absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader(bytes);
  if (!header.ok()) {
    state->fault = std::string(header.status().message());
  } else if (header->store_id != store_id_ || header->segment_id != segment_id) {
    state->file = nullptr;
    state->fault =
        StrCat("expected segment ", segment_id, " of store ", StoreIdText(store_id_), ", found segment ",
               header->segment_id, " of store ", StoreIdText(header->store_id));
  } else if (header->segment_bytes > state->file_bytes) {
    state->generation = header->generation;
    state->fault = StrCat("the file was cut short: expected ", header->segment_bytes, " bytes, found ",
                          state->file_bytes);
  } else {
    state->generation = header->generation;
    state->file_bytes = header->segment_bytes;
  }
}

void Recovery::AdoptSegment(uint64_t segment_id) {
  absl::StatusOr<FileState> state = Inspect(segment_id);
  // What the operating system refuses for one file does not keep the others from being served.
  if (!state.ok()) state = FileState{.fault = std::string(state.status().message())};
  const auto live = live_.find(segment_id);
  if (live == live_.end()) return AdoptEmpty(segment_id, *state);
  AdoptLive(segment_id, live->second, *std::move(state));
}

void Recovery::AdoptEmpty(uint64_t segment_id, const FileState& state) {
  context_.segments->AvoidId(segment_id);
  if (state.is_blank) {
    // A crash came between its creation and its first header.
    const absl::Status removed = disk_->Remove(SegmentFileName(segment_id));
    if (!removed.ok()) spdlog::warn("store: {}", removed.ToString());
    return;
  }
  if (!state.fault.empty()) {
    // It may be somebody's data. A segment of ours that was damaged while it was empty costs its space until
    // then.
    spdlog::warn("store: {} holds nothing of this store and is left alone; move it away: {}",
                 context_.segments->FilePath(segment_id), state.fault);
    return;
  }
  SegmentInfo info{.id = segment_id, .generation = state.generation, .segment_bytes = state.file_bytes};
  if (const auto failure = failures_.find(segment_id); failure != failures_.end()) {
    info.state = SegmentInfo::State::kFailed;
    info.fault = failure->second;
  }
  context_.segments->Adopt(std::move(info));
}

void Recovery::AdoptLive(uint64_t segment_id, const LiveBytes& live, FileState state) {
  SegmentInfo info{.id = segment_id,
                   .generation = state.generation,
                   .segment_bytes = state.file_bytes,
                   .tail = live.end,
                   .used_bytes = live.bytes,
                   .live_bytes = live.bytes,
                   .fault = state.fault,
                   .unreadable = state.file == nullptr};
  if (!info.fault.empty()) {
    spdlog::error("store: {} holds {} bytes of live chunks, but: {}", context_.segments->FilePath(segment_id),
                  live.bytes, info.fault);
  } else if (const auto failure = failures_.find(segment_id); failure != failures_.end()) {
    info.fault = failure->second;
  }
  if (!info.fault.empty()) info.state = SegmentInfo::State::kFailed;
  const Slack slack{segment_id, live.end, std::max(info.segment_bytes, live.end), live.bytes};
  if (state.file != nullptr && state.allocated_bytes > slack.needed_bytes()) slack_.push_back(slack);
  // A tail without disk under it takes no records: a full disk must show when a segment is begun.
  const bool has_tail = info.fault.empty() && slack.tail_bytes() > 0 &&
                        state.allocated_bytes >= slack.needed_bytes() + slack.tail_bytes();
  if (has_tail && (!longest_tail_.has_value() || slack.tail_bytes() > longest_tail_->tail_bytes())) {
    longest_tail_ = slack;
  }
  context_.segments->Adopt(std::move(info));
}

// --- space ---------------------------------------------------------------------------------------

absl::StatusOr<std::vector<Extent>> Recovery::Gaps(uint64_t segment_id, uint64_t end) const {
  std::vector<Extent> gaps;
  uint64_t at = kFirstRecordOffset;
  ESKER_RETURN_IF_ERROR(context_.index->ForEachPlaceIn(segment_id, [&](const PlaceEntry& place) {
    if (place.offset > at) gaps.push_back({at, place.offset - at});
    at = std::max(at, place.end());
    return absl::OkStatus();
  }));
  if (end > at) gaps.push_back({at, end - at});
  return gaps;
}

absl::Status Recovery::ActivateLongestTail() {
  if (!longest_tail_.has_value()) return absl::OkStatus();
  const Slack& tail = *longest_tail_;
  ESKER_ASSIGN_OR_RETURN(const std::vector<Extent> gaps, Gaps(tail.segment_id, tail.end));
  context_.segments->AddDead(tail.segment_id, gaps);
  report_ += context_.segments->Reclaim();
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<DiskFile> file, context_.segments->Open(tail.segment_id));
  ESKER_ASSIGN_OR_RETURN(const uint64_t allocated_bytes, file->AllocatedBytes());
  // What made up the sum may have been the gaps.
  if (allocated_bytes < tail.needed_bytes() + tail.tail_bytes()) {
    longest_tail_.reset();
    return absl::OkStatus();
  }
  context_.segments->Activate(tail.segment_id, std::move(file));
  return absl::OkStatus();
}

absl::Status Recovery::ReclaimDeadSpace() {
  report_ += context_.segments->Reclaim();
  for (const Slack& slack : slack_) {
    if (longest_tail_.has_value() && slack.segment_id == longest_tail_->segment_id) continue;
    ESKER_ASSIGN_OR_RETURN(const std::vector<Extent> gaps, Gaps(slack.segment_id, slack.segment_bytes));
    context_.segments->AddDead(slack.segment_id, gaps);
    report_ += context_.segments->Reclaim();
  }
  if (report_.disk_bytes_freed > 0 || report_.segments_recycled > 0) {
    spdlog::info(
        "store: {} bytes that nothing refers to were given back, {} empty segments are kept for new data",
        report_.disk_bytes_freed, report_.segments_recycled);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Recover(CommitContext* context, Disk* disk, const StoreId& store_id) {
  return Recovery(context, disk, store_id).Run();
}

}  // namespace esker::store
