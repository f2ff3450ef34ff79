// SegmentSet's way of having written segments in stock.
#include <algorithm>
#include <utility>

#include "format/base/status.h"
#include "server/store/segment_set.h"

namespace esker::store {
namespace {

using State = SegmentInfo::State;

// One write, while which whoever needs a segment waits: a millisecond on a fast disk.
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr size_t kRecentSaves = 8;

// Never written, so that it costs no memory: its pages are the system's page of zeros.
alignas(kBlockBytes) std::byte zeros[kPieceBytes];

}  // namespace

void SegmentSet::NoteSavesEnded() {
  MutexLock lock(&mu_);
  if (begun_bytes_ == 0) return;
  // One more, since the next save may find less left in the active one.
  wanted_bytes_.push_front(std::exchange(begun_bytes_, 0) + options_.segment_bytes);
  if (wanted_bytes_.size() > kRecentSaves) wanted_bytes_.pop_back();
}

uint64_t SegmentSet::StockTarget() const {
  const uint64_t most_bytes = *std::max_element(wanted_bytes_.begin(), wanted_bytes_.end());
  return std::min(options_.recycle_bytes, std::max(most_bytes, begun_bytes_ + options_.segment_bytes));
}

absl::StatusOr<bool> SegmentSet::CanSpare(uint64_t bytes) const {
  ESKER_ASSIGN_OR_RETURN(const DiskSpace space, disk_->Space());
  return space.available_bytes >= bytes && space.available_bytes - bytes >= options_.min_free_bytes;
}

void SegmentSet::BecomeFree(Segment* segment, uint64_t allocated_bytes, uint64_t written_to) {
  segment->info.state = State::kFree;
  segment->allocated_bytes = std::min(allocated_bytes, segment->info.segment_bytes);
  segment->written_to = written_to;
  free_bytes_ += segment->allocated_bytes;
}

absl::StatusOr<bool> SegmentSet::TendStock() {
  MutexLock grow(&grow_mu_);
  ESKER_ASSIGN_OR_RETURN(const bool can_spare, CanSpare(0));
  std::optional<uint64_t> surplus;
  std::optional<uint64_t> unwritten;
  {
    MutexLock lock(&mu_);
    surplus = FindSurplus(can_spare ? StockTarget() : 0);
    if (!surplus.has_value()) unwritten = FindUnwritten();
    const bool is_enough = free_bytes_ + options_.segment_bytes > StockTarget();
    if (!surplus.has_value() && !unwritten.has_value() && is_enough) return false;
  }
  if (surplus.has_value()) return RemoveFromStock(*surplus);
  return unwritten.has_value() ? WritePiece(*unwritten) : AddToStock();
}

// The one that was written least, if the others are enough.
std::optional<uint64_t> SegmentSet::FindSurplus(uint64_t target_bytes) const {
  std::optional<uint64_t> found;
  for (const auto& [id, segment] : segments_) {
    if (segment.info.state != State::kFree || free_bytes_ < target_bytes + segment.allocated_bytes) continue;
    if (!found.has_value() || segment.written_to < At(*found).written_to) found = id;
  }
  return found;
}

// The one that was written furthest of those that have to be.
std::optional<uint64_t> SegmentSet::FindUnwritten() const {
  std::optional<uint64_t> found;
  for (const auto& [id, segment] : segments_) {
    if (segment.info.state != State::kFree || segment.written_to >= segment.info.segment_bytes) continue;
    const uint64_t holes = segment.info.segment_bytes - segment.allocated_bytes;
    if (free_bytes_ + holes > options_.recycle_bytes) continue;
    if (!found.has_value() || segment.written_to > At(*found).written_to) found = id;
  }
  return found;
}

absl::StatusOr<bool> SegmentSet::RemoveFromStock(uint64_t segment_id) {
  MutexLock reclaim(&reclaim_mu_);
  {
    MutexLock lock(&mu_);
    Segment& segment = At(segment_id);
    segment.info.state = State::kTaken;
    free_bytes_ -= segment.allocated_bytes;
  }
  return Unlink({.id = segment_id, .failed = false, .unreadable = false});
}

// It can be used from now on, written or not; after a crash it is found as a free segment.
absl::StatusOr<bool> SegmentSet::AddToStock() {
  ESKER_ASSIGN_OR_RETURN(const bool has_room, CanSpare(options_.segment_bytes));
  if (!has_room) return false;
  uint64_t id = 0;
  ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<DiskFile> file, MakeSegment(&id));
  MutexLock lock(&mu_);
  BecomeFree(&At(id), options_.segment_bytes, kFirstRecordOffset);
  return true;
}

absl::StatusOr<bool> SegmentSet::FillHoles(uint64_t segment_id, DiskFile* file) {
  uint64_t segment_bytes;
  uint64_t holes;
  {
    MutexLock lock(&mu_);
    const Segment& segment = At(segment_id);
    segment_bytes = segment.info.segment_bytes;
    holes = segment_bytes - segment.allocated_bytes;
  }
  if (holes == 0) return true;
  ESKER_ASSIGN_OR_RETURN(const bool has_room, CanSpare(holes));
  if (!has_room) return false;
  ESKER_RETURN_IF_ERROR(file->Allocate(segment_bytes));
  MutexLock lock(&mu_);
  At(segment_id).allocated_bytes += holes;
  free_bytes_ += holes;
  return true;
}

// Only who holds grow_mu_ takes a free segment, so nobody's records are written over.
absl::StatusOr<bool> SegmentSet::WritePiece(uint64_t segment_id) {
  ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<DiskFile> file, files_.Get(segment_id));
  ESKER_ASSIGN_OR_RETURN(const bool has_room, FillHoles(segment_id, file.get()));
  if (!has_room) return false;
  uint64_t offset;
  uint64_t segment_bytes;
  {
    MutexLock lock(&mu_);
    const Segment& segment = At(segment_id);
    offset = segment.written_to;
    segment_bytes = segment.info.segment_bytes;
  }
  const uint64_t bytes = std::min(kPieceBytes - offset % kPieceBytes, segment_bytes - offset);
  absl::Status status = file->Write(offset, ByteView(zeros, bytes));
  // Or the first save into it would wait for all of it.
  if (status.ok() && offset + bytes == segment_bytes) status = file->Sync();
  if (!status.ok()) {
    Fail(segment_id, status);
    ScheduleReclaim();
    return status;
  }
  MutexLock lock(&mu_);
  At(segment_id).written_to = offset + bytes;
  return true;
}

}  // namespace esker::store
