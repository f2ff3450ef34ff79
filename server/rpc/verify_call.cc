#include "server/rpc/verify_call.h"

#include <algorithm>
#include <utility>

#include "format/base/text.h"
#include "format/envelope.h"
#include "server/rpc/grpc_status.h"

namespace esker {
namespace {

constexpr int kChunksInFlight = 4;
constexpr uint64_t kChunksPerMessage = 64;
constexpr int64_t kMessageIntervalMs = 500;
// Faults that wait to be sent; verification goes on when the client has taken them.
constexpr int kMaxFaultsPerMessage = 1000;
constexpr size_t kMaxFaultTextBytes = 1024;

}  // namespace

VerifyCall::VerifyCall(RpcBackend* backend, grpc::CallbackServerContext* context,
                       const v1::VerifyPartsRequest& request)
    : backend_(backend),
      context_(context),
      request_(request),
      save_{.run = request.run(), .step = request.step(), .save_id = request.save_id()} {
  backend_->watch.Add(this);
  const int running = ++backend_->verify_calls;
  MutexLock lock(&mu_);
  if (running > kMaxVerifyCalls) {
    EndLocked(absl::ResourceExhaustedError(
        StrCat("VerifyParts: ", kMaxVerifyCalls, " verifications run already (the limit); try again later")));
    FinishIfOverLocked();
  } else {
    work_ = 1;
    sent_ms_ = NowMillis();
    backend_->calls.Schedule([this] { Plan(); });
  }
}

VerifyCall::~VerifyCall() {
  --backend_->verify_calls;
  if (has_lease_) backend_->store->CloseRead(lease_id_);
}

// --- the parts
// --------------------------------------------------------------------------------------------------------

void VerifyCall::Plan() {
  absl::Status status = OpenLease();
  std::vector<uint32_t> ranks(request_.ranks().begin(), request_.ranks().end());
  if (status.ok() && ranks.empty()) {
    absl::StatusOr<std::vector<uint32_t>> held = backend_->store->PartRanks(save_);
    status = held.status();
    if (held.ok()) ranks = *std::move(held);
  }
  if (status.ok()) status = CountChunks(ranks);
  MutexLock lock(&mu_);
  --work_;
  planned_ = true;
  ranks_.assign(ranks.begin(), ranks.end());
  if (!status.ok()) EndLocked(Annotate(status, "VerifyParts"));
  GoOnLocked();
}

absl::Status VerifyCall::OpenLease() {
  lease_id_ = backend_->store->OpenRead(save_);
  has_lease_ = true;
  return backend_->coordinator->CheckCommitted(save_);
}

absl::Status VerifyCall::CountChunks(const std::vector<uint32_t>& ranks) {
  uint64_t total = 0;
  for (const uint32_t rank : ranks) {
    if (ended()) return absl::CancelledError("the call has ended");
    // Parts that can't be read count for nothing here and are reported when their turn comes.
    const absl::StatusOr<StoredPart> stored = backend_->store->GetPart(save_, rank);
    if (!stored.ok()) continue;
    const absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, stored->envelope);
    if (part.ok()) total += part->chunk_hashes().size() / sizeof(Hash128);
    RenewNowAndThen();
  }
  MutexLock lock(&mu_);
  progress_.set_chunks_total(total);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PartChunk>> VerifyCall::ReadPartChunks(uint32_t rank) const {
  ESKER_ASSIGN_OR_RETURN(const StoredPart stored, backend_->store->GetPart(save_, rank));
  ESKER_ASSIGN_OR_RETURN(const v1::Part part, DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, stored.envelope));
  ESKER_ASSIGN_OR_RETURN(const Hash128 digest, HashFromBytes(part.layout_digest(), "layout digest"));
  ESKER_ASSIGN_OR_RETURN(const std::string envelope, backend_->store->GetLayout(digest));
  if (const Hash128 found = HashOf(AsBytes(envelope)); found != digest) {
    return absl::DataLossError(
        StrCat("layout ", digest.ToHex(), " has the content of ", found.ToHex(), ": it is damaged"));
  }
  ESKER_ASSIGN_OR_RETURN(const v1::Layout layout,
                         DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, envelope));
  ESKER_RETURN_IF_ERROR(ValidateLayout(layout));
  ESKER_RETURN_IF_ERROR(ValidatePart(part, layout));
  return PartMap(part, layout).chunks();
}

void VerifyCall::LoadPart(uint32_t rank) {
  absl::StatusOr<std::vector<PartChunk>> chunks = ReadPartChunks(rank);
  RenewNowAndThen();
  MutexLock lock(&mu_);
  --work_;
  loading_ = false;
  rank_ = rank;
  next_chunk_ = 0;
  chunks_.clear();
  if (chunks.ok()) {
    chunks_ = *std::move(chunks);
  } else {
    v1::ChunkFault* fault = progress_.add_faults();
    fault->set_rank(rank);
    fault->set_error(StrCat("the part can't be read: ", chunks.status().message()));
  }
  GoOnLocked();
}

// --- a chunk
// ----------------------------------------------------------------------------------------------------------

void VerifyCall::StartChunkLocked() {
  const Task task = {.rank = rank_, .index = next_chunk_, .chunk = chunks_[next_chunk_]};
  ++next_chunk_;
  ++chunks_in_flight_;
  ++work_;
  backend_->reader->Read(
      /*client=*/this, task.chunk.hash, ReadMode::kFromDisk,
      [this] { return ended() ? absl::CancelledError("the call has ended") : absl::OkStatus(); },
      [this, task](const HeldChunkOr& held) {
        backend_->calls.Schedule([this, task, held] { Check(task, held); });
      });
}

void VerifyCall::Check(const Task& task, const HeldChunkOr& held) {
  absl::Status status = held.status();
  if (held.ok() && !ended()) status = CheckContent(task.chunk, **held);
  v1::ChunkFault fault;
  if (!status.ok()) fault = DescribeFault(task, status);
  RenewNowAndThen();

  MutexLock lock(&mu_);
  --work_;
  --chunks_in_flight_;
  progress_.set_chunks_done(progress_.chunks_done() + 1);
  if (held.ok()) progress_.set_bytes_read(progress_.bytes_read() + (*held)->info().stored_bytes);
  if (!status.ok()) *progress_.add_faults() = std::move(fault);
  GoOnLocked();
}

absl::Status VerifyCall::CheckContent(const PartChunk& chunk, const HeldChunk& held) {
  const ChunkInfo& info = held.info();
  if (info.raw_bytes != chunk.raw_bytes || info.dtype != chunk.dtype) {
    return absl::DataLossError(StrCat("the part says ", chunk.raw_bytes, " bytes of ", DTypeName(chunk.dtype),
                                      ", the chunk's record ", info.raw_bytes, " bytes of ",
                                      DTypeName(info.dtype)));
  }
  const Codec* codec = FindCodec(info.codec);
  if (codec == nullptr) {
    return absl::UnimplementedError(
        StrCat("codec ", static_cast<int>(info.codec), " is unknown to this version of the server"));
  }
  std::unique_ptr<Scratch> raw;
  {
    MutexLock lock(&mu_);
    if (!scratch_.empty()) {
      raw = std::move(scratch_.back());
      scratch_.pop_back();
    }
  }
  // Reused: memory that is touched for the first time is slower than the disk.
  if (raw == nullptr) raw = std::make_unique<Scratch>(kMaxChunkBytes);
  const MutableBytes room = MutableBytes(*raw).first(info.raw_bytes);
  absl::Status status = codec->decode(held.stored(), info.dtype, room);
  if (status.ok()) {
    if (const Hash128 found = HashOf(room); found != chunk.hash) {
      status =
          absl::DataLossError(StrCat("expected content ", chunk.hash.ToHex(), ", found ", found.ToHex()));
    }
  }
  MutexLock lock(&mu_);
  scratch_.push_back(std::move(raw));
  return status;
}

v1::ChunkFault VerifyCall::DescribeFault(const Task& task, const absl::Status& error) const {
  v1::ChunkFault fault;
  fault.set_rank(task.rank);
  fault.set_chunk_index(task.index);
  fault.set_hash(std::string(task.chunk.hash.AsText()));
  fault.set_error(std::string(MessageOf(error).substr(0, kMaxFaultTextBytes)));
  if (const absl::StatusOr<ChunkLocation> location = backend_->store->Locate(task.chunk.hash);
      location.ok()) {
    fault.set_file(location->file);
    fault.set_file_offset(location->offset);
  }
  return fault;
}

void VerifyCall::RenewNowAndThen() {
  {
    MutexLock lock(&mu_);
    if (NowMillis() - renewed_ms_ < backend_->RenewIntervalMillis()) return;
    renewed_ms_ = NowMillis();
  }
  const absl::Status held = backend_->store->RenewRead(lease_id_);
  if (held.ok()) return;
  MutexLock lock(&mu_);
  EndLocked(Annotate(held, "VerifyParts: its own lease"));
}

// --- going on
// ---------------------------------------------------------------------------------------------------------

void VerifyCall::GoOnLocked() {
  PumpLocked();
  WriteIfDueLocked();
  FinishIfOverLocked();
}

void VerifyCall::PumpLocked() {
  while (!ended_ && chunks_in_flight_ < kChunksInFlight && progress_.faults_size() < kMaxFaultsPerMessage) {
    if (next_chunk_ < chunks_.size()) {
      StartChunkLocked();
    } else if (!ranks_.empty() && !loading_) {
      StartLoadLocked();
    } else {
      break;
    }
  }
  const bool all_done =
      ranks_.empty() && !loading_ && next_chunk_ == chunks_.size() && chunks_in_flight_ == 0;
  if (planned_ && all_done) EndLocked(absl::OkStatus());
}

void VerifyCall::StartLoadLocked() {
  const uint32_t rank = ranks_.front();
  ranks_.pop_front();
  loading_ = true;
  ++work_;
  backend_->calls.Schedule([this, rank] { LoadPart(rank); });
}

void VerifyCall::WriteIfDueLocked() {
  if (writing_ || finished_ || last_sent_) return;
  const bool last = ended_ && end_status_.ok();
  if (ended_ && !last) return;
  const bool due = progress_.chunks_done() - sent_chunks_ >= kChunksPerMessage ||
                   NowMillis() - sent_ms_ >= kMessageIntervalMs ||
                   progress_.faults_size() >= kMaxFaultsPerMessage;
  if (!last && !(planned_ && due)) return;
  outgoing_ = progress_;
  progress_.clear_faults();
  sent_chunks_ = progress_.chunks_done();
  sent_ms_ = NowMillis();
  write_deadline_ms_ = sent_ms_ + static_cast<int64_t>(backend_->options.stalled_chunk_timeout_ms);
  last_sent_ = last;
  writing_ = true;
  StartWrite(&outgoing_);
}

void VerifyCall::OnWriteDone(bool ok) {
  MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) {
    EndLocked(absl::CancelledError("the client is gone"));
    last_sent_ = true;
  }
  GoOnLocked();
}

void VerifyCall::OnCancel() {
  MutexLock lock(&mu_);
  EndLocked(absl::CancelledError("the client cancelled the call"));
  FinishIfOverLocked();
}

void VerifyCall::EndLocked(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  end_status_ = status;
}

bool VerifyCall::ended() const {
  MutexLock lock(&mu_);
  return ended_;
}

void VerifyCall::FinishIfOverLocked() {
  if (finished_ || !ended_ || work_ > 0 || writing_) return;
  if (end_status_.ok() && !last_sent_) return;
  finished_ = true;
  Finish(ToGrpcStatus(end_status_));
}

void VerifyCall::OnTick(int64_t now_ms, bool draining) {
  MutexLock lock(&mu_);
  if (finished_) return;
  if (writing_ && now_ms >= write_deadline_ms_) {
    EndLocked(absl::DeadlineExceededError("VerifyParts: the client took no message for too long"));
    write_deadline_ms_ = now_ms + static_cast<int64_t>(backend_->options.stalled_chunk_timeout_ms);
    context_->TryCancel();
    return;
  }
  if (draining) EndLocked(absl::UnavailableError("VerifyParts: the server is stopping; try again"));
  WriteIfDueLocked();
  FinishIfOverLocked();
}

void VerifyCall::OnDone() {
  backend_->watch.Remove(this);
  {
    // Whoever started the last operation may still hold it.
    MutexLock lock(&mu_);
  }
  delete this;
}

}  // namespace esker
