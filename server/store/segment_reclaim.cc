// SegmentSet's way of giving space back.
#include <algorithm>
#include <utility>

#include "format/base/status.h"
#include "server/store/segment_set.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

using State = SegmentInfo::State;

// An emptied segment with a larger share of holes than 1/16 is written anew in stock: what is filled by
// fallocate takes data as slowly as a new file. The rest after the last record is less.
constexpr uint64_t kHolesWorthAFill = 16;

// Sorted, and with neighbours joined: one hole costs a journal entry, whatever its size.
std::vector<Extent> Joined(std::vector<Extent> extents) {
  std::sort(extents.begin(), extents.end());
  std::vector<Extent> joined;
  for (const Extent& extent : extents) {
    if (!joined.empty() && joined.back().end() >= extent.offset) {
      joined.back().bytes = std::max(joined.back().end(), extent.end()) - joined.back().offset;
    } else {
      joined.push_back(extent);
    }
  }
  return joined;
}

uint64_t AllocatedOrZero(DiskFile* file) {
  const absl::StatusOr<uint64_t> bytes = file->AllocatedBytes();
  if (!bytes.ok()) spdlog::warn("store: {}", bytes.status().ToString());
  return bytes.value_or(0);
}

}  // namespace

ReclaimReport& ReclaimReport::operator+=(const ReclaimReport& other) {
  disk_bytes_freed += other.disk_bytes_freed;
  segments_recycled += other.segments_recycled;
  recycled_bytes += other.recycled_bytes;
  return *this;
}

ReclaimReport SegmentSet::Reclaim() {
  MutexLock reclaim(&reclaim_mu_);
  std::vector<Emptied> emptied;
  std::vector<Punch> punches;
  TakeReclaimable(&emptied, &punches);
  ReclaimReport report;
  bool unlinked = false;
  for (const Emptied& segment : emptied) unlinked |= RetireEmptied(segment, &report);
  if (unlinked) {
    // A name that comes back after a crash is found at the next start, empty.
    const absl::Status status = disk_->SyncDirectory();
    if (!status.ok()) spdlog::warn("store: {}", status.ToString());
  }
  for (Punch& punch : punches) PunchHoles(std::move(punch), &report);
  return report;
}

void SegmentSet::TakeReclaimable(std::vector<Emptied>* emptied, std::vector<Punch>* punches) {
  MutexLock lock(&mu_);
  if (hold_reclaim_) return;
  for (const uint64_t id : std::exchange(touched_, {})) {
    const auto it = segments_.find(id);
    if (it == segments_.end()) continue;
    Segment& segment = it->second;
    const State state = segment.info.state;
    if (segment.info.unreadable && segment.info.used_bytes > 0) continue;
    const bool fresh = state == State::kActive && segment.info.tail == kFirstRecordOffset;
    if (state == State::kFree || state == State::kTaken || fresh) continue;
    if (segment.info.used_bytes == 0) {
      if (id == active_id_) CloseActive();
      emptied->push_back({id, state == State::kFailed, segment.info.unreadable});
      segment.info.state = State::kTaken;
      segment.dead.clear();
    } else if (!segment.dead.empty()) {
      punches->push_back({id, std::exchange(segment.dead, {})});
    }
  }
  // CloseActive marks the segment again, which is being dealt with.
  for (const Emptied& segment : *emptied) touched_.erase(segment.id);
}

bool SegmentSet::RetireEmptied(const Emptied& emptied, ReclaimReport* report) {
  uint64_t allocated_bytes = 0;
  if (!emptied.unreadable) {
    const absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(emptied.id);
    if (file.ok()) allocated_bytes = AllocatedOrZero(file->get());
  }
  if (!emptied.failed && CanSpare(0).value_or(false)) {
    MutexLock lock(&mu_);
    if (free_bytes_ + allocated_bytes <= StockTarget()) {
      Segment& segment = At(emptied.id);
      segment.info.tail = kFirstRecordOffset;
      const bool is_whole =
          allocated_bytes >= segment.info.segment_bytes / kHolesWorthAFill * (kHolesWorthAFill - 1);
      BecomeFree(&segment, allocated_bytes, is_whole ? segment.info.segment_bytes : kFirstRecordOffset);
      ++report->segments_recycled;
      report->recycled_bytes += allocated_bytes;
      return false;
    }
  }
  if (!Unlink(emptied)) return false;
  report->disk_bytes_freed += allocated_bytes;
  if (emptied.failed && options_.failure_changed) options_.failure_changed(emptied.id, std::nullopt);
  return !emptied.unreadable;
}

bool SegmentSet::Unlink(const Emptied& emptied) {
  absl::Status status;
  files_.Drop(emptied.id);
  // A file of that name, if there is one, is not ours.
  if (!emptied.unreadable) status = disk_->Remove(SegmentFileName(emptied.id));
  MutexLock lock(&mu_);
  if (status.ok()) {
    segments_.erase(emptied.id);
    return true;
  }
  spdlog::error("store: {} is empty but can't be removed: {}", FilePath(emptied.id), status.ToString());
  Segment& segment = At(emptied.id);
  segment.info.state = State::kFailed;
  segment.info.fault = status.ToString();
  return false;
}

void SegmentSet::PunchHoles(Punch punch, ReclaimReport* report) {
  absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(punch.id);
  if (!file.ok()) {
    spdlog::warn("store: space can't be given back: {}", file.status().ToString());
    return;
  }
  const uint64_t before = AllocatedOrZero(file->get());
  for (const Extent& extent : Joined(std::move(punch.extents))) {
    if (!can_punch()) break;
    const absl::Status status = (*file)->PunchHole(extent.offset, extent.bytes);
    if (status.ok()) continue;
    spdlog::warn("store: space can't be given back: {}", status.ToString());
    if (!absl::IsUnimplemented(status)) continue;
    MutexLock lock(&mu_);
    can_punch_ = false;
  }
  const uint64_t after = AllocatedOrZero(file->get());
  if (before > after) report->disk_bytes_freed += before - after;
}

void SegmentSet::ScheduleReclaim() {
  MutexLock lock(&mu_);
  if (reclaim_scheduled_ || touched_.empty() || reclaimer_ == nullptr) return;
  reclaim_scheduled_ = true;
  reclaimer_->Schedule([this] { ReclaimInBackground(); });
}

void SegmentSet::ReclaimInBackground() {
  {
    MutexLock lock(&mu_);
    reclaim_scheduled_ = false;
  }
  const ReclaimReport report = Reclaim();
  if (report.disk_bytes_freed > 0)
    spdlog::debug("store: gave {} bytes of disk back", report.disk_bytes_freed);
}

void SegmentSet::HoldReclaim(bool hold) {
  MutexLock lock(&mu_);
  hold_reclaim_ = hold;
}

absl::Status SegmentSet::WithFilesAtRest(const std::function<absl::Status()>& visit) {
  MutexLock grow(&grow_mu_);
  MutexLock reclaim(&reclaim_mu_);
  return visit();
}

uint64_t SegmentSet::reusable_bytes() const {
  MutexLock lock(&mu_);
  if (active_id_ == 0) return free_bytes_;
  const SegmentInfo& active = At(active_id_).info;
  return free_bytes_ + active.segment_bytes - active.tail;
}

}  // namespace esker::store
