#include "server/local/arena_save.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/delta.h"
#include "format/envelope.h"
#include "format/layout.h"
#include "format/part_envelope.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

// What a worker takes at a time: as much as stays in the caches between its hash and its checksum, and few
// enough small chunks that the others have some, too.
constexpr uint64_t kBatchBytes = 8 << 20;
constexpr size_t kBatchChunks = 64;
constexpr std::chrono::milliseconds kProgressInterval{100};
// How often the store may say that it lacks chunks that it has just taken.
constexpr int kSealTries = 5;

absl::Status Invalid(std::string_view what) {
  return absl::InvalidArgumentError(StrCat("a save from shared memory: ", what));
}

std::span<const uint64_t> SpanOf(const google::protobuf::RepeatedField<uint64_t>& field) {
  return {field.data(), static_cast<size_t>(field.size())};
}

PartRef RefOf(const v1::SaveContext& save) {
  return {.save = {.run = save.run(), .step = save.step(), .save_id = save.save_id()},
          .attempt = save.attempt(),
          .rank = save.rank()};
}

}  // namespace

ArenaSave::ArenaSave(LocalBackend* backend, std::shared_ptr<const Arena> arena, ArenaHistory* history,
                     Tell tell)
    : backend_(backend), arena_(std::move(arena)), history_(history), tell_(std::move(tell)) {}

absl::StatusOr<v1::LocalSealed> ArenaSave::Run(v1::ArenaSave request, const NextReady& next_ready) {
  request_ = std::move(request);
  ESKER_RETURN_IF_ERROR(Check(request_));
  ESKER_RETURN_IF_ERROR(Begin());
  const auto begin = std::chrono::steady_clock::now();
  if (request_.choose_codec()) {
    if (!history_->codec_chooser.Choose()) codec_ = nullptr;
    spdlog::debug("{}@{} rank {}: {}", request_.run(), request_.step(), request_.rank(),
                  history_->codec_chooser.reason());
  }
  ESKER_RETURN_IF_ERROR(StoreAll(next_ready));
  if (request_.choose_codec()) {
    LearnForChoice(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }

  v1::ReportPartRequest report;
  ESKER_ASSIGN_OR_RETURN(*report.mutable_part(), Seal());
  *report.mutable_save() = context_;
  report.mutable_part()->clear_servers();
  report.mutable_part()->add_servers(0);
  *report.add_servers() = backend_->server;
  ESKER_RETURN_IF_ERROR(backend_->coordinator->ReportPart(report).status());

  v1::LocalSealed sealed;
  *sealed.mutable_entry() = report.part();
  *sealed.mutable_server() = backend_->server;
  MutexLock lock(&mu_);
  *sealed.mutable_progress() = progress_;
  return sealed;
}

// --- the request ---------------------------------------------------------------------------------

absl::Status ArenaSave::Check(const v1::ArenaSave& request) {
  context_.set_run(request.run());
  context_.set_step(request.step());
  context_.set_attempt(request.attempt());
  context_.set_rank(request.rank());
  const std::optional<CodecId> codec = CodecFromNumber(request.codec());
  if (!codec.has_value())
    return Invalid(StrCat("codec ", request.codec(), ", which this server does not have"));
  if (*codec == CodecId::kDelta) {
    codec_ = FindCodec(CodecId::kPlanes);
  } else if (*codec != CodecId::kRaw) {
    codec_ = FindCodec(*codec);
  }
  if (request.records_offset() % kRecordAlignment != 0 ||
      request.records_offset() > arena_->memory().size()) {
    return Invalid(StrCat("its records begin at byte ", request.records_offset(), ", expected a multiple of ",
                          kRecordAlignment, " within the arena's ", arena_->memory().size()));
  }
  const absl::StatusOr<v1::Layout> layout =
      DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, request.layout_envelope());
  if (!layout.ok()) return Invalid(MessageOf(layout.status()));
  ESKER_RETURN_IF_ERROR(ValidateLayout(*layout));
  const int items = request.item_chunk_raw_bytes_size();
  chunks_.reserve(static_cast<size_t>(layout->chunk_raw_bytes_size() + items));
  for (int i = 0; i < layout->chunk_raw_bytes_size(); ++i) {
    ESKER_RETURN_IF_ERROR(AddChunk(layout->chunk_raw_bytes(i), layout->chunk_dtype(i)));
  }
  for (int i = 0; i < items; ++i) {
    ESKER_RETURN_IF_ERROR(AddChunk(request.item_chunk_raw_bytes(i), static_cast<uint64_t>(DType::kBytes)));
  }
  FindBase();
  return absl::OkStatus();
}

void ArenaSave::FindBase() {
  std::vector<ArenaChunk>& base = history_->base;
  if (base.empty() || chunks_.empty()) return;
  const bool is_overwritten = chunks_.front().record_offset < base.back().record_end() &&
                              base.front().record_offset < chunks_.back().record_end();
  if (is_overwritten) base.clear();
  has_base_ = !base.empty() && request_.codec() == static_cast<uint32_t>(CodecId::kDelta) &&
              request_.has_base_offset() && request_.base_offset() == base.front().record_offset;
}

absl::Status ArenaSave::AddChunk(uint64_t raw_bytes, uint64_t dtype) {
  Chunk chunk;
  chunk.record_offset = chunks_.empty() ? request_.records_offset() : chunks_.back().record_end();
  chunk.raw_bytes = raw_bytes;
  chunk.dtype = static_cast<DType>(dtype);
  if (raw_bytes == 0 || raw_bytes > kMaxChunkBytes)
    return Invalid(StrCat("a chunk of ", raw_bytes, " bytes"));
  if (chunks_.size() == kMaxPartChunks) return Invalid(StrCat("more than ", kMaxPartChunks, " chunks"));
  if (chunk.record_end() > arena_->memory().size()) {
    return Invalid(StrCat("chunk ", chunks_.size(), " ends at byte ", chunk.record_end(),
                          ", but the arena has ", arena_->memory().size()));
  }
  raw_bytes_ += raw_bytes;
  chunks_.push_back(chunk);
  return absl::OkStatus();
}

absl::Status ArenaSave::Begin() {
  v1::BeginSaveRequest request;
  request.set_run(request_.run());
  request.set_attempt(request_.attempt());
  request.set_step(request_.step());
  request.set_rank(request_.rank());
  request.set_world_size(request_.world_size());
  request.set_raw_bytes(raw_bytes_);
  ESKER_ASSIGN_OR_RETURN(const v1::BeginSaveResponse begun, backend_->coordinator->BeginSave(request));
  context_.set_save_id(begun.save_id());
  v1::LocalAnswer answer;
  answer.mutable_accepted()->set_save_id(begun.save_id());
  tell_(answer);
  return absl::OkStatus();
}

// --- chunks --------------------------------------------------------------------------------------

ByteView ArenaSave::Raw(const ArenaChunk& chunk) const {
  return ByteView(arena_->memory())
      .subspan(chunk.record_offset + PayloadOffset(chunk.raw_bytes), chunk.raw_bytes);
}

absl::Status ArenaSave::StoreAll(const NextReady& next_ready) {
  absl::Status status;
  size_t ready = 0;
  while (ready < chunks_.size()) {
    const absl::StatusOr<uint64_t> count = next_ready(std::chrono::steady_clock::now() + kProgressInterval);
    if (count.ok() && *count >= ready && *count <= chunks_.size()) {
      std::vector<size_t> more(*count - ready);
      std::iota(more.begin(), more.end(), ready);
      ready = *count;
      Add(more);
      continue;
    }
    status = count.ok() ? Invalid(StrCat(*count, " chunks are said to be ready, of ", chunks_.size(),
                                         "; before it were ", ready))
                        : count.status();
    if (absl::IsDeadlineExceeded(status)) status = TellProgress();
    if (!status.ok()) break;
  }
  if (!status.ok()) {
    MutexLock lock(&mu_);
    if (failure_.ok()) failure_ = status;
  }
  return AwaitStored();
}

void ArenaSave::Add(const std::vector<size_t>& chunks) {
  MutexLock lock(&mu_);
  AddLocked(chunks);
}

void ArenaSave::AddLocked(std::span<const size_t> chunks) {
  to_do_.insert(to_do_.end(), chunks.begin(), chunks.end());
  const auto most =
      static_cast<int>(std::min(static_cast<size_t>(backend_->workers.threads()), to_do_.size()));
  for (; working_ < most; ++working_) backend_->workers.Schedule([this] { Work(); });
}

absl::Status ArenaSave::TellProgress() {
  v1::LocalAnswer answer;
  {
    MutexLock lock(&mu_);
    ESKER_RETURN_IF_ERROR(failure_);
    *answer.mutable_progress() = progress_;
  }
  tell_(answer);
  return absl::OkStatus();
}

absl::Status ArenaSave::AwaitStored() {
  while (true) {
    {
      MutexLock lock(&mu_);
      const auto next_tell = std::chrono::steady_clock::now() + kProgressInterval;
      while (!IsDone() && changed_.WaitUntil(&mu_, next_tell)) {
      }
      if (IsDone()) return failure_;
    }
    static_cast<void>(TellProgress());  // a failure ends all, but not before what is under way
  }
}

void ArenaSave::Work() {
  std::vector<size_t> batch;
  {
    MutexLock lock(&mu_);
    batch = NextBatch();
    if (batch.empty()) {
      --working_;
      changed_.NotifyAll();  // under the lock: afterwards this object may be gone
      return;
    }
  }
  if (const absl::Status status = StoreBatch(batch); !status.ok()) {
    MutexLock lock(&mu_);
    if (failure_.ok()) failure_ = status;
  }
  // Behind the tasks of other saves, so that each gets its share.
  backend_->workers.Schedule([this] { Work(); });
}

std::vector<size_t> ArenaSave::NextBatch() {
  std::vector<size_t> batch;
  uint64_t bytes = 0;
  while (failure_.ok() && !to_do_.empty() && batch.size() < kBatchChunks) {
    bytes += chunks_[to_do_.front()].raw_bytes;
    if (!batch.empty() && bytes > kBatchBytes) break;
    batch.push_back(to_do_.front());
    to_do_.pop_front();
  }
  return batch;
}

absl::Status ArenaSave::StoreBatch(const std::vector<size_t>& batch) {
  if (backend_->stopping) return absl::UnavailableError("the server is stopping; try again");
  ESKER_RETURN_IF_ERROR(backend_->coordinator->CheckSaveOpen(context_));
  for (const size_t index : batch) Hash(&chunks_[index]);
  const std::vector<size_t> distinct = TakeDistinct(batch);
  std::vector<Hash128> hashes;
  for (const size_t index : distinct) hashes.push_back(chunks_[index].hash);
  ESKER_ASSIGN_OR_RETURN(const std::vector<bool> missing, backend_->store->Offer(RefOf(context_), hashes));
  for (size_t i = 0; i < distinct.size(); ++i) {
    if (missing[i]) {
      Put(distinct[i]);
      continue;
    }
    const uint64_t raw_bytes = chunks_[distinct[i]].raw_bytes;
    MutexLock lock(&mu_);
    progress_.set_processed_bytes(progress_.processed_bytes() + raw_bytes);
    progress_.set_deduplicated_bytes(progress_.deduplicated_bytes() + raw_bytes);
  }
  return absl::OkStatus();
}

void ArenaSave::Hash(Chunk* chunk) const {
  const ByteView raw = Raw(*chunk);
  if (codec_ != nullptr) {
    chunk->hash = HashOf(raw);
    return;
  }
  const Checksums sums = ChecksumsOf(raw);
  chunk->hash = sums.hash;
  chunk->crc32c = sums.crc32c;
}

std::vector<size_t> ArenaSave::TakeDistinct(const std::vector<size_t>& batch) {
  std::vector<size_t> distinct;
  MutexLock lock(&mu_);
  for (const size_t index : batch) {
    const auto [first, is_new] = first_with_.try_emplace(chunks_[index].hash, index);
    if (is_new || first->second == index) {
      distinct.push_back(index);
    } else {
      const uint64_t raw_bytes = chunks_[index].raw_bytes;
      progress_.set_processed_bytes(progress_.processed_bytes() + raw_bytes);
      progress_.set_deduplicated_bytes(progress_.deduplicated_bytes() + raw_bytes);
    }
  }
  return distinct;
}

const ArenaChunk* ArenaSave::BaseOf(size_t index) const {
  const Chunk& chunk = chunks_[index];
  if (!has_base_ || chunk.whole || index >= history_->base.size()) return nullptr;
  const ArenaChunk& base = history_->base[index];
  if (base.raw_bytes != chunk.raw_bytes || base.dtype != chunk.dtype) return nullptr;
  // The client can write there, and what is restored rests on it.
  return HashOf(Raw(base)) == base.hash ? &base : nullptr;
}

CodecId ArenaSave::Encode(size_t index, std::vector<std::byte>* to) const {
  if (codec_ == nullptr) return CodecId::kRaw;
  const Chunk& chunk = chunks_[index];
  const ByteView raw = Raw(chunk);
  if (const ArenaChunk* const base = BaseOf(index);
      base != nullptr && EncodeDelta(*codec_, raw, Raw(*base), base->hash, chunk.dtype, to)) {
    return CodecId::kDelta;
  }
  return codec_->encode(raw, chunk.dtype, to) ? codec_->id : CodecId::kRaw;
}

void ArenaSave::Put(size_t index) {
  const Chunk& chunk = chunks_[index];
  const ByteView raw = Raw(chunk);
  ChunkInfo info{.hash = chunk.hash,
                 .dtype = chunk.dtype,
                 .raw_bytes = chunk.raw_bytes,
                 .stored_bytes = chunk.raw_bytes,
                 .stored_crc32c = chunk.crc32c};
  Buffer record;
  if (codec_ != nullptr) {
    thread_local std::vector<std::byte> encoded;
    info.codec = Encode(index, &encoded);
    if (info.codec != CodecId::kRaw) {
      info.stored_bytes = encoded.size();
      record = backend_->store->buffers()->Acquire(RecordBytes(encoded.size()));
      std::memcpy(record.data() + PayloadOffset(encoded.size()), encoded.data(), encoded.size());
    }
    info.stored_crc32c = Crc32c(record ? ByteView(encoded) : raw);
  }
  if (!record) {
    record =
        Buffer::Borrow(arena_->memory().subspan(chunk.record_offset, RecordBytes(chunk.raw_bytes)), arena_);
  }
  {
    MutexLock lock(&mu_);
    ++puts_;
  }
  backend_->store->Put(RefOf(context_), info, std::move(record),
                       [this, index, info](const absl::Status& status) { EndPut(index, info, status); });
}

void ArenaSave::EndPut(size_t index, const ChunkInfo& info, const absl::Status& status) {
  MutexLock lock(&mu_);
  --puts_;
  if (status.ok()) {
    progress_.set_processed_bytes(progress_.processed_bytes() + info.raw_bytes);
    progress_.set_written_bytes(progress_.written_bytes() + info.stored_bytes);
    if (info.codec == CodecId::kDelta) ++deltas_taken_;
  } else if (absl::IsFailedPrecondition(status) && info.codec == CodecId::kDelta) {
    ++deltas_refused_;
    chunks_[index].whole = true;
    AddLocked(std::array{index});
  } else if (failure_.ok()) {
    failure_ = status;
  }
  if (IsDone()) changed_.NotifyAll();  // under the lock: afterwards this object may be gone
}

void ArenaSave::LearnForChoice(double seconds) {
  CodecChooser& chooser = history_->codec_chooser;
  uint64_t written_bytes;
  {
    MutexLock lock(&mu_);
    written_bytes = progress_.written_bytes();
  }
  chooser.Saw(written_bytes, seconds);
  const Codec* const codec = FindCodec(*CodecFromNumber(request_.codec()));
  if (!chooser.WantsSample() || chunks_.empty() || codec == nullptr || codec->id == CodecId::kRaw) return;
  chooser.Learn(SampleCodec(*codec, chunks_.size(), [this](size_t chunk) {
    return SampleChunk{Raw(chunks_[chunk]), chunks_[chunk].dtype};
  }));
}

// --- the end -------------------------------------------------------------------------------------

absl::StatusOr<v1::PartEntry> ArenaSave::Seal() {
  std::vector<Hash128> hashes;
  hashes.reserve(chunks_.size());
  for (const Chunk& chunk : chunks_) hashes.push_back(chunk.hash);
  const std::string envelope =
      EncodePartEnvelope(context_, {.layout_digest = HashOf(AsBytes(request_.layout_envelope())),
                                    .chunk_hashes = hashes,
                                    .item_bytes = SpanOf(request_.item_bytes()),
                                    .item_chunk_raw_bytes = SpanOf(request_.item_chunk_raw_bytes()),
                                    .raw_bytes = raw_bytes_});
  for (int i = 0; i < kSealTries; ++i) {
    ESKER_RETURN_IF_ERROR(backend_->coordinator->CheckSaveOpen(context_));
    ESKER_ASSIGN_OR_RETURN(SealResult sealed,
                           backend_->store->Seal(RefOf(context_), envelope, request_.layout_envelope()));
    if (sealed.missing.empty()) {
      sealed.entry.set_unchanged_bytes(CountUnchanged(hashes));
      sealed.entry.set_codec(static_cast<uint32_t>(codec_ == nullptr ? CodecId::kRaw
                                                   : IsDelta()       ? CodecId::kDelta
                                                                     : codec_->id));
      if (!IsDelta() && request_.codec() == static_cast<uint32_t>(CodecId::kDelta)) {
        history_->base.assign(chunks_.begin(), chunks_.end());
      }
      return std::move(sealed.entry);
    }
    // A segment's fdatasync failed, and what was written to it is written again elsewhere.
    std::vector<size_t> missing;
    {
      MutexLock lock(&mu_);
      for (const Hash128& hash : sealed.missing) {
        missing.push_back(first_with_.at(hash));
        progress_.set_processed_bytes(progress_.processed_bytes() - chunks_[missing.back()].raw_bytes);
      }
    }
    Add(missing);
    ESKER_RETURN_IF_ERROR(AwaitStored());
  }
  return absl::UnavailableError(
      StrCat("the store lost chunks that it had taken, ", kSealTries, " times; its log says why"));
}

bool ArenaSave::IsDelta() const {
  MutexLock lock(&mu_);
  return has_base_ && (deltas_refused_ == 0 || deltas_taken_ > 0);
}

uint64_t ArenaSave::CountUnchanged(const std::vector<Hash128>& hashes) {
  uint64_t unchanged_bytes = 0;
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (history_->last_chunks.contains(hashes[i])) unchanged_bytes += chunks_[i].raw_bytes;
  }
  history_->last_chunks = {hashes.begin(), hashes.end()};
  return unchanged_bytes;
}

}  // namespace esker
