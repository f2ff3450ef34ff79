#include "server/store/chunk_io.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/delta.h"
#include "spdlog/spdlog.h"

namespace esker::store {
namespace {

constexpr int kWorkers = 2;
// A record that failed in so many segments is not the segments' fault.
constexpr int kMaxWriteAttempts = 3;

absl::Status CheckPut(const ChunkInfo& info, const Buffer& record) {
  ESKER_RETURN_IF_ERROR(ValidateChunkInfo(info));
  const uint64_t record_bytes = RecordBytes(info.stored_bytes);
  if (record.size() >= record_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("chunk ", info.hash.ToHex(), ": expected a buffer of at least ",
                                           record_bytes, " bytes, found ", record.size()));
}

void CallAll(const std::vector<PutDone>& waiters, const absl::Status& status) {
  for (const PutDone& done : waiters) done(status);
}

}  // namespace

ChunkIo::ChunkIo(BufferPool* buffers, const Index* index, SegmentSet* segments, Sessions* sessions,
                 Committer* committer)
    : buffers_(buffers),
      index_(index),
      segments_(segments),
      sessions_(sessions),
      committer_(committer),
      workers_(kWorkers, "esker-store") {}

ChunkIo::~ChunkIo() {
  MutexLock lock(&mu_);
  while (under_way_ > 0) idle_.Wait(&mu_);
}

void ChunkIo::Enter() {
  MutexLock lock(&mu_);
  ++under_way_;
}

void ChunkIo::Leave() {
  MutexLock lock(&mu_);
  if (--under_way_ == 0) idle_.NotifyAll();
}

// --- writing -------------------------------------------------------------------------------------

void ChunkIo::Put(const PartRef& part, const ChunkInfo& info, Buffer record, PutDone done) {
  if (absl::Status status = CheckPut(info, record); !status.ok()) return done(status);
  Hash128 base{};
  const bool is_delta = info.codec == CodecId::kDelta;
  if (is_delta) {
    const absl::StatusOr<Hash128> pinned = PinBase(info, record);
    if (!pinned.ok()) return done(pinned.status());
    base = *pinned;
  }
  absl::StatusOr<Sessions::PutStep> step = sessions_->BeginPut(part, info, &done, base);
  const bool took_pin =
      step.ok() && (*step == Sessions::PutStep::kLookUp || *step == Sessions::PutStep::kWrite);
  if (is_delta && !took_pin) Unpin(base);
  if (!step.ok()) return done(step.status());
  switch (*step) {
    case Sessions::PutStep::kDone:
      return done(absl::OkStatus());
    case Sessions::PutStep::kWait:
      return;
    case Sessions::PutStep::kLookUp: {
      const absl::StatusOr<bool> found = IsInIndex(info);
      if (found.ok() && !*found) break;
      return EndPut(info.hash, found.status());
    }
    case Sessions::PutStep::kWrite:
      break;
  }
  Enter();
  StartWrite(
      std::make_shared<Write>(Write{.part = part, .info = info, .base = base, .record = std::move(record)}));
}

absl::StatusOr<Hash128> ChunkIo::PinBase(const ChunkInfo& info, const Buffer& record) {
  const absl::StatusOr<Delta> delta =
      ParseDelta({record.data() + PayloadOffset(info.stored_bytes), info.stored_bytes});
  if (!delta.ok()) {
    return absl::InvalidArgumentError(StrCat("chunk ", info.hash.ToHex(), ": ", MessageOf(delta.status())));
  }
  const std::vector<Sessions::Held> held = sessions_->Pin(std::array{delta->base});
  // In any other state it is on its way into the index, or out of it.
  if (held[0] == Sessions::Held::kLookUp && CanBeBase(delta->base, info)) return delta->base;
  if (held[0] != Sessions::Held::kDying) Unpin(delta->base);
  return absl::FailedPreconditionError(StrCat("chunk ", info.hash.ToHex(), ": it can't be a delta of chunk ",
                                              delta->base.ToHex(),
                                              ", which the store does not hold whole: put it whole"));
}

bool ChunkIo::CanBeBase(const Hash128& base, const ChunkInfo& of) const {
  const absl::StatusOr<std::optional<ChunkEntry>> entry = index_->GetChunk(base);
  return entry.ok() && entry->has_value() && !(*entry)->is_delta() &&
         (*entry)->info.raw_bytes == of.raw_bytes && !sessions_->IsDamaged(base);
}

void ChunkIo::Unpin(const Hash128& hash) { committer_->Settle(sessions_->Unpin(std::array{hash})); }

void ChunkIo::EndPut(const Hash128& hash, const absl::Status& status) {
  LetGo let_go;
  const std::vector<PutDone> waiters = sessions_->FinishPut(hash, &let_go);
  committer_->Settle(let_go);
  CallAll(waiters, status);
}

absl::StatusOr<bool> ChunkIo::IsInIndex(const ChunkInfo& info) const {
  ESKER_ASSIGN_OR_RETURN(const std::optional<ChunkEntry> entry, index_->GetChunk(info.hash));
  if (!entry.has_value()) return false;
  if (entry->info.raw_bytes == info.raw_bytes) return true;
  return absl::InvalidArgumentError(StrCat("chunk ", info.hash.ToHex(), " of ", info.raw_bytes,
                                           " raw bytes: the store holds one of this name with ",
                                           entry->info.raw_bytes,
                                           " raw bytes; one of the two has a wrong name"));
}

void ChunkIo::StartWrite(std::shared_ptr<Write> write) {
  const uint64_t stored_bytes = write->info.stored_bytes;
  const uint64_t record_bytes = RecordBytes(stored_bytes);
  ++write->attempts;
  absl::StatusOr<WritePlace> place = segments_->Allocate(record_bytes);
  if (!place.ok()) return GiveUp(write, place.status());
  write->place = *std::move(place);
  const MutableBytes record = write->record.bytes().first(record_bytes);
  EncodeChunkHeader(write->info, write->place.place, record);
  const MutableBytes padding = record.subspan(PayloadOffset(stored_bytes) + stored_bytes);
  std::fill(padding.begin(), padding.end(), std::byte{0});
  DiskFile* const file = write->place.file.get();
  file->WriteAsync(write->place.place.offset, record, [this, write](const absl::Status& status) {
    workers_.Schedule([this, write, status] { EndWrite(write, status); });
  });
}

void ChunkIo::EndWrite(const std::shared_ptr<Write>& write, const absl::Status& status) {
  const RecordPlace& place = write->place.place;
  if (status.ok()) {
    write->record = Buffer();
    const WrittenChunk chunk{write->info, place, segments_->WriteFinished(place.segment_id), write->base};
    LetGo let_go;
    const std::vector<PutDone> waiters = sessions_->FinishWrite(write->part, chunk, &let_go);
    committer_->Settle(let_go);
    CallAll(waiters, status);
    return Leave();
  }
  if (!absl::IsResourceExhausted(status)) segments_->Fail(place.segment_id, status);
  const std::array<ReleasedPlace, 1> released = {ReleasedPlace{
      .segment_id = place.segment_id, .extent = {place.offset, RecordBytes(write->info.stored_bytes)}}};
  segments_->Release(released);
  segments_->ScheduleReclaim();
  if (absl::IsResourceExhausted(status) || write->attempts == kMaxWriteAttempts) return GiveUp(write, status);
  StartWrite(write);
}

void ChunkIo::GiveUp(const std::shared_ptr<Write>& write, const absl::Status& status) {
  write->record = Buffer();
  EndPut(write->info.hash, Annotate(status, StrCat("chunk ", write->info.hash.ToHex(), " can't be stored")));
  Leave();
}

// --- reading -------------------------------------------------------------------------------------

void ChunkIo::Read(const Hash128& hash, ReadDone done) {
  Enter();
  absl::StatusOr<std::shared_ptr<ReadOp>> prepared = PrepareRead(hash);
  if (!prepared.ok()) {
    workers_.Schedule([this, status = prepared.status(), done = std::move(done)] {
      done(status);
      Leave();
    });
    return;
  }
  std::shared_ptr<ReadOp> read = *std::move(prepared);
  read->done = std::move(done);
  ++chunks_read_;
  DiskFile* const file = read->file.get();
  const MutableBytes record = read->record.bytes().first(read->entry.record_bytes());
  file->ReadAsync(read->entry.place.offset, record, [this, read](const absl::Status& status) {
    workers_.Schedule([this, read, status] { EndRead(read, status); });
  });
}

// With success, the chunk stays pinned until EndRead.
absl::StatusOr<std::shared_ptr<ChunkIo::ReadOp>> ChunkIo::PrepareRead(const Hash128& hash) {
  const absl::Status not_found = absl::NotFoundError(StrCat("the store holds no chunk ", hash.ToHex()));
  if (!sessions_->PinForRead(hash)) return not_found;
  auto read = std::make_shared<ReadOp>();
  absl::StatusOr<std::optional<ChunkEntry>> entry = index_->GetChunk(hash);
  absl::Status status = entry.status();
  if (status.ok() && !entry->has_value()) status = not_found;
  if (status.ok()) {
    read->entry = **entry;
    absl::StatusOr<std::shared_ptr<DiskFile>> file = segments_->Open(read->entry.place.segment_id);
    status = file.status();
    if (status.ok()) read->file = *std::move(file);
  }
  if (!status.ok()) {
    Unpin(hash);
    return status;
  }
  read->record = buffers_->Acquire(read->entry.record_bytes());
  return read;
}

// False if the record was replaced by a sound one while it was read (or the index can't say).
bool ChunkIo::IsStillAt(const ChunkEntry& entry) const {
  const absl::StatusOr<std::optional<ChunkEntry>> now = index_->GetChunk(entry.info.hash);
  return now.ok() && now->has_value() && (*now)->place == entry.place;
}

void ChunkIo::EndRead(const std::shared_ptr<ReadOp>& read, absl::Status status) {
  const ChunkEntry& entry = read->entry;
  auto result = std::make_shared<ChunkRead>();
  if (status.ok()) {
    const ByteView record = read->record.bytes().first(entry.record_bytes());
    const absl::StatusOr<ChunkHeader> header = CheckRecord(record, entry.place, entry.info.hash);
    status = header.status();
    if (header.ok()) result->info = header->info;
  } else if (absl::IsOutOfRange(status)) {
    status = absl::DataLossError(status.message());  // the file was cut short
  }
  if (absl::IsDataLoss(status) && IsStillAt(entry)) sessions_->MarkDamaged(entry.info.hash);
  Unpin(entry.info.hash);
  if (status.ok()) {
    result->record = std::move(read->record);
    read->done(std::move(result));
  } else {
    read->record = Buffer();
    read->done(
        Annotate(status, StrCat(segments_->FilePath(entry.place.segment_id), " at ", entry.place.offset)));
  }
  read->done = nullptr;
  Leave();
}

}  // namespace esker::store
