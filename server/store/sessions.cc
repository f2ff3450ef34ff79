#include "server/store/sessions.h"

#include <algorithm>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker::store {

Sessions::Session& Sessions::Touch(const PartRef& part) {
  Session& session = sessions_[part];
  session.active_ms = clock_->MonotonicMillis();
  return session;
}

// --- promises ------------------------------------------------------------------------------------

std::optional<uint64_t> Sessions::Promise(const PartRef& part, uint64_t bytes, uint64_t available_bytes) {
  MutexLock lock(&mu_);
  const auto known = sessions_.find(part);
  const uint64_t own = known == sessions_.end() ? 0 : known->second.promised_bytes;
  const uint64_t written = known == sessions_.end() ? 0 : known->second.written_bytes;
  const uint64_t wanted = bytes - std::min(bytes, written);
  const uint64_t others = promised_bytes_ - own;
  if (others > available_bytes || wanted > available_bytes - others) return others;
  Touch(part).promised_bytes = wanted;
  promised_bytes_ = others + wanted;
  return std::nullopt;
}

uint64_t Sessions::promised_bytes() const {
  MutexLock lock(&mu_);
  return promised_bytes_;
}

// --- pins ----------------------------------------------------------------------------------------

absl::Status Sessions::CheckLimit(size_t more) const {
  if (pins_.size() + more <= max_pinned_chunks_) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      StrCat("saves under way name ", pins_.size(), " chunks and ", more,
             " more are offered; the server's limit is ", max_pinned_chunks_,
             ": wait for other saves to end, use larger chunks, or spread over more servers"));
}

Sessions::Held Sessions::PinLocked(const Hash128& hash) {
  const bool writing = writing_.contains(hash);
  const bool written = written_.contains(hash);
  // The entry that dies has a successor on its way.
  if (!writing && !written && dying_.contains(hash)) return Held::kDying;
  ++pins_[hash];
  return writing ? Held::kWriting : written ? Held::kWritten : Held::kLookUp;
}

void Sessions::UnpinLocked(const Hash128& hash, LetGo* let_go) {
  const auto pin = pins_.find(hash);
  ESKER_CHECK(pin != pins_.end() && pin->second > 0);
  if (--pin->second > 0) return;
  pins_.erase(pin);
  if (unreferenced_.erase(hash) > 0) let_go->unreferenced.push_back(hash);
  ForgetIfUnpinned(hash, let_go);
}

void Sessions::ForgetIfUnpinned(const Hash128& hash, LetGo* let_go) {
  if (pins_.contains(hash)) return;
  const auto written = written_.find(hash);
  if (written == written_.end()) return;
  let_go->forgotten.push_back(written->second);
  EraseWritten(hash, let_go);
}

void Sessions::EraseWritten(const Hash128& hash, LetGo* let_go) {
  const auto written = written_.extract(hash);
  if (!written.empty() && written.mapped().is_delta()) UnpinLocked(written.mapped().base, let_go);
}

absl::StatusOr<std::vector<Sessions::Held>> Sessions::PinForPart(const PartRef& part,
                                                                 std::span<const Hash128> hashes) {
  MutexLock lock(&mu_);
  ESKER_RETURN_IF_ERROR(CheckLimit(hashes.size()));
  Session& session = Touch(part);
  std::vector<Held> held;
  held.reserve(hashes.size());
  for (const Hash128& hash : hashes) {
    held.push_back(PinLocked(hash));
    if (held.back() == Held::kDying || session.pins.insert(hash).second) continue;
    --pins_[hash];  // the part had it pinned
  }
  return held;
}

LetGo Sessions::UnpinForPart(const PartRef& part, std::span<const Hash128> hashes) {
  LetGo let_go;
  MutexLock lock(&mu_);
  const auto session = sessions_.find(part);
  if (session == sessions_.end()) return let_go;
  for (const Hash128& hash : hashes) {
    if (session->second.pins.erase(hash) > 0) UnpinLocked(hash, &let_go);
  }
  return let_go;
}

std::vector<Sessions::Held> Sessions::Pin(std::span<const Hash128> hashes) {
  MutexLock lock(&mu_);
  std::vector<Held> held;
  held.reserve(hashes.size());
  for (const Hash128& hash : hashes) held.push_back(PinLocked(hash));
  return held;
}

bool Sessions::PinForRead(const Hash128& hash) {
  MutexLock lock(&mu_);
  if (dying_.contains(hash)) return false;
  ++pins_[hash];
  return true;
}

LetGo Sessions::Unpin(std::span<const Hash128> hashes) {
  LetGo let_go;
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) UnpinLocked(hash, &let_go);
  return let_go;
}

void Sessions::EndSession(std::map<PartRef, Session>::iterator session, LetGo* let_go) {
  promised_bytes_ -= session->second.promised_bytes;
  for (const Hash128& hash : session->second.pins) UnpinLocked(hash, let_go);
  sessions_.erase(session);
}

LetGo Sessions::EndPart(const PartRef& part) {
  LetGo let_go;
  MutexLock lock(&mu_);
  if (const auto session = sessions_.find(part); session != sessions_.end()) EndSession(session, &let_go);
  return let_go;
}

LetGo Sessions::EndSave(const SaveRef& save) {
  LetGo let_go;
  MutexLock lock(&mu_);
  auto session = sessions_.lower_bound(PartRef{.save = save, .attempt = 0, .rank = 0});
  while (session != sessions_.end() && session->first.save == save) EndSession(session++, &let_go);
  return let_go;
}

std::vector<std::pair<SaveRef, int64_t>> Sessions::OpenSaves() const {
  std::vector<std::pair<SaveRef, int64_t>> saves;
  MutexLock lock(&mu_);
  for (const auto& [part, session] : sessions_) {
    if (saves.empty() || saves.back().first != part.save) saves.emplace_back(part.save, session.active_ms);
    saves.back().second = std::max(saves.back().second, session.active_ms);
  }
  return saves;
}

bool Sessions::HasOpenSaves() const {
  MutexLock lock(&mu_);
  return !sessions_.empty();
}

// --- writing -------------------------------------------------------------------------------------

absl::StatusOr<Sessions::PutStep> Sessions::BeginPut(const PartRef& part, const ChunkInfo& info,
                                                     PutDone* done, const Hash128& base) {
  const bool is_delta = info.codec == CodecId::kDelta;
  MutexLock lock(&mu_);
  const auto writing = writing_.find(info.hash);
  const auto written = written_.find(info.hash);
  const uint64_t raw_bytes = writing != writing_.end()   ? writing->second.raw_bytes
                             : written != written_.end() ? written->second.info.raw_bytes
                                                         : info.raw_bytes;
  if (raw_bytes != info.raw_bytes) {
    return absl::InvalidArgumentError(StrCat("chunk ", info.hash.ToHex(), " of ", info.raw_bytes,
                                             " raw bytes: the store holds one of this name with ", raw_bytes,
                                             " raw bytes; one of the two has a wrong name"));
  }
  if (is_delta && damaged_.contains(info.hash)) {
    return absl::FailedPreconditionError(
        StrCat("chunk ", info.hash.ToHex(),
               " is damaged in the store: it can be healed only whole, not by a delta"));
  }
  Session& session = Touch(part);
  if (!session.pins.contains(info.hash)) {
    ESKER_RETURN_IF_ERROR(CheckLimit(1));
    session.pins.insert(info.hash);
    ++pins_[info.hash];
  }
  if (written != written_.end()) return PutStep::kDone;
  if (writing != writing_.end()) {
    writing->second.waiters.push_back(std::move(*done));
    return PutStep::kWait;
  }
  Write& write = writing_[info.hash];
  write.raw_bytes = info.raw_bytes;
  if (is_delta) write.base = base;
  write.waiters.push_back(std::move(*done));
  const bool in_place_of_another = dying_.contains(info.hash) || damaged_.contains(info.hash);
  return in_place_of_another ? PutStep::kWrite : PutStep::kLookUp;
}

std::vector<PutDone> Sessions::FinishPut(const Hash128& hash, LetGo* let_go) {
  MutexLock lock(&mu_);
  auto write = writing_.extract(hash);
  ESKER_CHECK(!write.empty());
  if (write.mapped().base.has_value()) UnpinLocked(*write.mapped().base, let_go);
  write_ended_.NotifyAll();
  return std::move(write.mapped().waiters);
}

std::vector<PutDone> Sessions::FinishWrite(const PartRef& part, const WrittenChunk& chunk, LetGo* let_go) {
  const uint64_t record_bytes = RecordBytes(chunk.info.stored_bytes);
  MutexLock lock(&mu_);
  if (const auto session = sessions_.find(part); session != sessions_.end()) {
    const uint64_t kept = std::min(session->second.promised_bytes, record_bytes);
    session->second.promised_bytes -= kept;
    promised_bytes_ -= kept;
    session->second.written_bytes += record_bytes;
    session->second.active_ms = clock_->MonotonicMillis();
  }
  const auto write = writing_.find(chunk.info.hash);
  ESKER_CHECK(write != writing_.end());
  std::vector<PutDone> waiters = std::move(write->second.waiters);
  writing_.erase(write);
  const bool is_new = written_.try_emplace(chunk.info.hash, chunk).second;
  ESKER_CHECK(is_new);
  ForgetIfUnpinned(chunk.info.hash, let_go);
  write_ended_.NotifyAll();
  return waiters;
}

void Sessions::AwaitWrites(std::span<const Hash128> hashes) {
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) {
    while (writing_.contains(hash)) write_ended_.Wait(&mu_);
  }
}

// --- for the committer ---------------------------------------------------------------------------

std::vector<std::optional<WrittenChunk>> Sessions::GetWritten(std::span<const Hash128> hashes) const {
  std::vector<std::optional<WrittenChunk>> chunks(hashes.size());
  MutexLock lock(&mu_);
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (const auto it = written_.find(hashes[i]); it != written_.end()) chunks[i] = it->second;
  }
  return chunks;
}

LetGo Sessions::Indexed(std::span<const Hash128> hashes) {
  LetGo let_go;
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) EraseWritten(hash, &let_go);
  return let_go;
}

LetGo Sessions::ForgetUnsynced(uint64_t segment_id, uint64_t synced_writes) {
  LetGo let_go;
  MutexLock lock(&mu_);
  for (const auto& [hash, chunk] : written_) {
    if (chunk.place.segment_id == segment_id && chunk.write_number > synced_writes) {
      let_go.forgotten.push_back(chunk);
    }
  }
  // A base is in the index, so it is none of these.
  for (size_t i = 0, count = let_go.forgotten.size(); i < count; ++i) {
    EraseWritten(let_go.forgotten[i].info.hash, &let_go);
  }
  return let_go;
}

std::vector<bool> Sessions::MarkDying(std::span<const Hash128> hashes) {
  std::vector<bool> marked(hashes.size());
  MutexLock lock(&mu_);
  for (size_t i = 0; i < hashes.size(); ++i) {
    marked[i] = !pins_.contains(hashes[i]) && dying_.insert(hashes[i]).second;
  }
  return marked;
}

void Sessions::EndDying(std::span<const Hash128> hashes) {
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) {
    dying_.erase(hash);
    damaged_.erase(hash);
  }
}

std::vector<Hash128> Sessions::KeepUnreferenced(std::span<const Hash128> hashes) {
  std::vector<Hash128> unpinned;
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) {
    if (pins_.contains(hash)) {
      unreferenced_.insert(hash);
    } else {
      unpinned.push_back(hash);
    }
  }
  return unpinned;
}

void Sessions::Referenced(std::span<const Hash128> hashes) {
  MutexLock lock(&mu_);
  for (const Hash128& hash : hashes) unreferenced_.erase(hash);
}

// --- damage --------------------------------------------------------------------------------------

void Sessions::MarkDamaged(const Hash128& hash) {
  MutexLock lock(&mu_);
  damaged_.insert(hash);
}

bool Sessions::IsDamaged(const Hash128& hash) const {
  MutexLock lock(&mu_);
  return damaged_.contains(hash);
}

void Sessions::Healed(const Hash128& hash) {
  MutexLock lock(&mu_);
  damaged_.erase(hash);
}

}  // namespace esker::store
