#include "server/store/segment_set.h"

#include <algorithm>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "server/store/aligned_block.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

using State = SegmentInfo::State;

constexpr size_t kMaxOpenFiles = 512;
// Segments that may turn out to be bad, one after the other, before a write gives up.
constexpr int kMaxBeginAttempts = 3;
// The stock of a server that has seen no save yet.
constexpr uint64_t kFirstStockSegments = 10;

}  // namespace

SegmentSet::SegmentSet(Disk* disk, SegmentSetOptions options)
    : disk_(disk), options_(std::move(options)), files_(disk, kMaxOpenFiles) {
  MutexLock lock(&mu_);
  wanted_bytes_.push_front(kFirstStockSegments * options_.segment_bytes);
  reclaimer_ = std::make_unique<ThreadPool>(1, "esker-reclaim");
}

SegmentSet::~SegmentSet() { StopReclaimer(); }

void SegmentSet::StopReclaimer() {
  std::unique_ptr<ThreadPool> reclaimer;
  MutexLock lock(&mu_);
  reclaimer = std::move(reclaimer_);
}

SegmentSet::Segment& SegmentSet::At(uint64_t segment_id) {
  const auto it = segments_.find(segment_id);
  ESKER_CHECK(it != segments_.end());
  return it->second;
}

const SegmentSet::Segment& SegmentSet::At(uint64_t segment_id) const {
  const auto it = segments_.find(segment_id);
  ESKER_CHECK(it != segments_.end());
  return it->second;
}

// --- recovery ------------------------------------------------------------------------------------

void SegmentSet::Adopt(SegmentInfo info) {
  MutexLock lock(&mu_);
  next_id_ = std::max(next_id_, info.id + 1);
  touched_.insert(info.id);
  const uint64_t id = info.id;
  const bool is_empty = info.used_bytes == 0 && info.state != State::kFailed;
  if (is_empty) adopted_bytes_ += info.segment_bytes;
  // The stock of the last process is what its saves took.
  wanted_bytes_.front() = std::max(wanted_bytes_.front(), adopted_bytes_);
  segments_[id].info = std::move(info);
}

void SegmentSet::AddDead(uint64_t segment_id, const std::vector<Extent>& extents) {
  MutexLock lock(&mu_);
  for (const Extent& extent : extents) AddDeadLocked(&At(segment_id), extent);
}

void SegmentSet::Activate(uint64_t segment_id, std::shared_ptr<DiskFile> file) {
  MutexLock lock(&mu_);
  ESKER_CHECK(active_id_ == 0);
  At(segment_id).info.state = State::kActive;
  active_id_ = segment_id;
  active_file_ = std::move(file);
}

void SegmentSet::AvoidId(uint64_t segment_id) {
  MutexLock lock(&mu_);
  next_id_ = std::max(next_id_, segment_id + 1);
}

// --- writing -------------------------------------------------------------------------------------

absl::StatusOr<WritePlace> SegmentSet::Allocate(uint64_t record_bytes) {
  {
    MutexLock lock(&mu_);
    if (std::optional<WritePlace> place = TakePlace(record_bytes)) return *std::move(place);
  }
  MutexLock grow(&grow_mu_);
  absl::Status status;
  for (int attempt = 0; attempt < kMaxBeginAttempts; ++attempt) {
    {
      MutexLock lock(&mu_);
      if (std::optional<WritePlace> place = TakePlace(record_bytes)) return *std::move(place);
    }
    status = BeginSegment();
    if (absl::IsResourceExhausted(status)) return status;
  }
  MutexLock lock(&mu_);
  if (std::optional<WritePlace> place = TakePlace(record_bytes)) return *std::move(place);
  return Annotate(status, "no segment can be begun");
}

std::optional<WritePlace> SegmentSet::TakePlace(uint64_t record_bytes) {
  if (active_id_ == 0) return std::nullopt;
  SegmentInfo& active = At(active_id_).info;
  if (active.tail + record_bytes > active.segment_bytes) return std::nullopt;
  const RecordPlace place{.segment_id = active.id, .generation = active.generation, .offset = active.tail};
  active.tail += record_bytes;
  active.used_bytes += record_bytes;
  return WritePlace{place, active_file_};
}

absl::Status SegmentSet::BeginSegment() {
  uint64_t id = 0;
  bool is_new = true;
  {
    MutexLock lock(&mu_);
    uint64_t most_bytes = 0;
    for (const auto& [candidate, segment] : segments_) {
      const uint64_t written_bytes = std::min(segment.written_to, segment.allocated_bytes);
      if (segment.info.state != State::kFree || (id != 0 && written_bytes <= most_bytes)) continue;
      id = candidate;
      most_bytes = written_bytes;
    }
    if (id != 0) {
      is_new = false;
      At(id).info.state = State::kTaken;
      free_bytes_ -= At(id).allocated_bytes;
    }
  }
  absl::StatusOr<std::shared_ptr<DiskFile>> file = is_new ? MakeSegment(&id) : RecycleSegment(id);
  ESKER_RETURN_IF_ERROR(file.status());

  bool reclaim;
  {
    MutexLock lock(&mu_);
    CloseActive();
    At(id).info.state = State::kActive;
    active_id_ = id;
    active_file_ = *std::move(file);
    begun_bytes_ += At(id).info.segment_bytes;
    reclaim = !touched_.empty();
  }
  if (reclaim) ScheduleReclaim();
  return absl::OkStatus();
}

// The header, like all of the segment, becomes durable with the first SyncUpTo: before that the index names
// no record of it.
absl::StatusOr<std::shared_ptr<DiskFile>> SegmentSet::RecycleSegment(uint64_t segment_id) {
  SegmentInfo info;
  {
    MutexLock lock(&mu_);
    info = At(segment_id).info;
  }
  ++info.generation;
  info.tail = kFirstRecordOffset;
  absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(segment_id);
  absl::Status status = file.status();
  // Fills the holes that were punched while it was partly live.
  if (status.ok()) status = DiskFull((*file)->Allocate(info.segment_bytes), info.segment_bytes);
  if (absl::IsResourceExhausted(status)) {
    MutexLock lock(&mu_);
    Segment& segment = At(segment_id);
    segment.info.state = State::kFree;
    free_bytes_ += segment.allocated_bytes;
    return status;
  }
  if (status.ok()) status = WriteHeader(file->get(), info);
  if (!status.ok()) {
    Fail(segment_id, status);
    return status;
  }
  MutexLock lock(&mu_);
  Segment& segment = At(segment_id);
  segment = Segment{};
  segment.info = info;
  return file;
}

absl::StatusOr<std::shared_ptr<DiskFile>> SegmentSet::MakeSegment(uint64_t* segment_id) {
  absl::StatusOr<std::unique_ptr<DiskFile>> made = absl::AlreadyExistsError("");
  // A name that is taken belongs to a file that recovery left alone, or that came since.
  while (absl::IsAlreadyExists(made.status())) {
    {
      MutexLock lock(&mu_);
      *segment_id = next_id_++;
    }
    made = disk_->Open(SegmentFileName(*segment_id), Disk::OpenMode::kCreateNew);
  }
  ESKER_RETURN_IF_ERROR(DiskFull(made.status(), options_.segment_bytes));
  std::shared_ptr<DiskFile> file = *std::move(made);
  SegmentInfo info{.id = *segment_id, .generation = 1, .segment_bytes = options_.segment_bytes};
  absl::Status status = DiskFull(file->Allocate(info.segment_bytes), info.segment_bytes);
  if (status.ok()) status = WriteHeader(file.get(), info);
  // A record that is durable in a file that has no durable name would be lost.
  if (status.ok()) status = disk_->SyncDirectory();
  if (!status.ok()) {
    file.reset();
    if (absl::Status removed = disk_->Remove(SegmentFileName(info.id)); !removed.ok()) {
      spdlog::warn("store: {} could not be begun ({}) and not be removed ({})", FilePath(info.id),
                   status.ToString(), removed.ToString());
    }
    return status;
  }
  files_.Insert(info.id, file);
  info.state = State::kTaken;
  MutexLock lock(&mu_);
  segments_[info.id].info = info;
  return file;
}

absl::Status SegmentSet::WriteHeader(DiskFile* file, const SegmentInfo& info) {
  const AlignedBlock block;
  EncodeSegmentHeader({.store_id = options_.store_id,
                       .segment_id = info.id,
                       .generation = info.generation,
                       .segment_bytes = info.segment_bytes,
                       .created_unix_ms = options_.clock->UnixMillis()},
                      block.bytes());
  return file->Write(0, block.bytes());
}

absl::Status SegmentSet::DiskFull(const absl::Status& status, uint64_t bytes) const {
  if (!absl::IsResourceExhausted(status)) return status;
  const absl::StatusOr<DiskSpace> space = disk_->Space();
  return absl::ResourceExhaustedError(
      StrCat("the disk of ", options_.directory, " is full: a segment of ", bytes, " bytes is needed, ",
             space.ok() ? StrCat(space->available_bytes, " of ", space->total_bytes, " bytes are free") : "",
             "; delete checkpoints (esker rm, esker gc) or make room (", status.message(), ")"));
}

void SegmentSet::CloseActive() {
  if (active_id_ == 0) return;
  Segment& segment = At(active_id_);
  if (segment.info.tail < segment.info.segment_bytes) {
    AddDeadLocked(&segment, {segment.info.tail, segment.info.segment_bytes - segment.info.tail});
  }
  touched_.insert(active_id_);
  segment.info.state = State::kClosed;
  active_id_ = 0;
  active_file_ = nullptr;
}

uint64_t SegmentSet::WriteFinished(uint64_t segment_id) {
  MutexLock lock(&mu_);
  return ++At(segment_id).finished_writes;
}

absl::Status SegmentSet::SyncUpTo(uint64_t segment_id, uint64_t write_number) {
  uint64_t finished;
  {
    MutexLock lock(&mu_);
    const Segment& segment = At(segment_id);
    if (segment.synced_writes >= write_number) return absl::OkStatus();
    if (segment.sync_failed) {
      return absl::DataLossError(StrCat(FilePath(segment_id), ": an fdatasync failed: ", segment.info.fault));
    }
    finished = segment.finished_writes;
  }
  absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(segment_id);
  const absl::Status status = file.ok() ? (*file)->Sync() : file.status();
  {
    MutexLock lock(&mu_);
    Segment& segment = At(segment_id);
    if (status.ok()) {
      segment.synced_writes = finished;
      return absl::OkStatus();
    }
    segment.sync_failed = true;
  }
  Fail(segment_id, status);
  return status;
}

uint64_t SegmentSet::synced_writes(uint64_t segment_id) const {
  MutexLock lock(&mu_);
  return At(segment_id).synced_writes;
}

void SegmentSet::Fail(uint64_t segment_id, const absl::Status& why) {
  std::string fault = why.ToString();
  {
    MutexLock lock(&mu_);
    Segment& segment = At(segment_id);
    if (segment.info.state == State::kFailed) return;
    if (segment_id == active_id_) CloseActive();
    if (segment.info.state == State::kFree) free_bytes_ -= segment.allocated_bytes;
    segment.info.state = State::kFailed;
    segment.info.fault = fault;
    touched_.insert(segment_id);
  }
  spdlog::error("store: {} takes no more records: {}", FilePath(segment_id), fault);
  if (options_.failure_changed) options_.failure_changed(segment_id, std::move(fault));
}

void SegmentSet::AddLive(uint64_t segment_id, uint64_t record_bytes) {
  MutexLock lock(&mu_);
  SegmentInfo& info = At(segment_id).info;
  info.live_bytes += record_bytes;
  ESKER_CHECK(info.live_bytes <= info.used_bytes);
}

void SegmentSet::AddDeadLocked(Segment* segment, const Extent& extent) {
  segment->dead.push_back(extent);
  touched_.insert(segment->info.id);
}

void SegmentSet::Release(std::span<const ReleasedPlace> places) {
  MutexLock lock(&mu_);
  for (const ReleasedPlace& place : places) {
    Segment& segment = At(place.segment_id);
    const uint64_t bytes = place.extent.bytes;
    ESKER_CHECK(segment.info.used_bytes >= bytes);
    segment.info.used_bytes -= bytes;
    if (place.was_live) {
      ESKER_CHECK(segment.info.live_bytes >= bytes);
      segment.info.live_bytes -= bytes;
    }
    AddDeadLocked(&segment, place.extent);
  }
}

// --- reading -------------------------------------------------------------------------------------

std::string SegmentSet::FilePath(uint64_t segment_id) const {
  return StrCat(options_.directory, "/", SegmentFileName(segment_id));
}

absl::StatusOr<std::shared_ptr<DiskFile>> SegmentSet::Open(uint64_t segment_id) {
  {
    MutexLock lock(&mu_);
    const auto it = segments_.find(segment_id);
    if (it == segments_.end() || it->second.info.unreadable) {
      return absl::DataLossError(
          StrCat(FilePath(segment_id), ": ",
                 it == segments_.end() ? "there is no such segment" : it->second.info.fault));
    }
  }
  absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(segment_id);
  if (absl::IsNotFound(file.status())) {
    return absl::DataLossError(StrCat(FilePath(segment_id), ": the file is gone: ", file.status().message()));
  }
  return file;
}

std::vector<SegmentInfo> SegmentSet::List() const {
  MutexLock lock(&mu_);
  std::vector<SegmentInfo> list;
  list.reserve(segments_.size());
  for (const auto& [id, segment] : segments_) list.push_back(segment.info);
  return list;
}

std::vector<Extent> SegmentSet::Dead(uint64_t segment_id) const {
  MutexLock lock(&mu_);
  return At(segment_id).dead;
}

absl::StatusOr<uint64_t> SegmentSet::AllocatedBytes() {
  uint64_t sum = 0;
  for (const SegmentInfo& info : List()) {
    if (info.unreadable) continue;
    absl::StatusOr<std::shared_ptr<DiskFile>> file = files_.Get(info.id);
    if (absl::IsNotFound(file.status())) continue;  // unlinked since, or lost: Open says so
    ESKER_RETURN_IF_ERROR(file.status());
    ESKER_ASSIGN_OR_RETURN(const uint64_t bytes, (*file)->AllocatedBytes());
    sum += bytes;
  }
  return sum;
}

bool SegmentSet::can_punch() const {
  MutexLock lock(&mu_);
  return can_punch_;
}

}  // namespace esker::store
