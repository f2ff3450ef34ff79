#include "client/uploader.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/delta.h"

namespace esker {
namespace {

// One message may carry this many; and fewer are not worth a message while more are being hashed.
constexpr size_t kMostOffered = 4096;
constexpr size_t kFewestOffered = 16;
constexpr uint64_t kOfferTimeoutMs = 60'000;
// A part this small goes over the connection that is there already.
constexpr uint64_t kSmallPartBytes = 4 << 20;

uint64_t LargestChunk(const Snapshot& snapshot) {
  uint64_t largest = 1;
  for (const SnapshotChunk& chunk : snapshot.chunks) largest = std::max(largest, chunk.bytes);
  return largest;
}

}  // namespace

Uploader::Uploader(const Snapshot* snapshot, const UploadOptions& options, ThreadPool* pool,
                   CodecChooser* chooser, SaveCounters* counters)
    : snapshot_(snapshot),
      options_(options),
      pool_(pool),
      chooser_(chooser),
      counters_(counters),
      codec_(options.choose_codec ? nullptr : options.codec),
      largest_chunk_bytes_(LargestChunk(*snapshot)),
      hashers_(std::clamp<size_t>(snapshot->chunks.size(), 1, static_cast<size_t>(pool->threads()))),
      hashes_(snapshot->chunks.size()),
      raw_crcs_(snapshot->chunks.size()),
      was_sent_(snapshot->chunks.size(), false) {}

Uploader::~Uploader() = default;

absl::Status Uploader::Upload(Connection* connection, const v1::SaveContext& save, const Deadline& deadline) {
  if (options_.choose_codec && codec_ == nullptr && chooser_->Choose()) codec_ = options_.codec;
  {
    MutexLock lock(&mu_);
    Restart();
  }
  const uint64_t sent_before = counters_->sent_bytes;
  const auto begin = std::chrono::steady_clock::now();
  ESKER_RETURN_IF_ERROR(Run({connection, save, deadline}));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (options_.choose_codec) Learn(counters_->sent_bytes - sent_before, seconds);
  return absl::OkStatus();
}

void Uploader::Learn(uint64_t sent_bytes, double seconds) {
  chooser_->Saw(sent_bytes, seconds);
  if (!chooser_->WantsSample() || snapshot_->chunks.empty()) return;
  chooser_->Learn(SampleCodec(*options_.codec, snapshot_->chunks.size(), [this](size_t chunk) {
    return SampleChunk{snapshot_->bytes(snapshot_->chunks[chunk]), snapshot_->chunks[chunk].dtype};
  }));
}

absl::Status Uploader::SendAgain(const std::vector<Hash128>& hashes, Connection* connection,
                                 const v1::SaveContext& save, const Deadline& deadline) {
  {
    MutexLock lock(&mu_);
    failure_ = absl::OkStatus();
    for (const Hash128& hash : absl::flat_hash_set<Hash128>(hashes.begin(), hashes.end())) {
      const auto known = first_with_.find(hash);
      if (known == first_with_.end()) {
        return absl::InternalError(StrCat("server ", connection->server(), ": SealPart: it lacks chunk ",
                                          hash.ToHex(), ", which is not of this part"));
      }
      to_send_.push_back(known->second);
      --held_;
      counters_->processed_bytes -= snapshot_->chunks[known->second].bytes;
    }
  }
  return Run({connection, save, deadline});
}

CodecId Uploader::codec() const {
  if (codec_ == nullptr) return CodecId::kRaw;
  if (!options_.delta || snapshot_->base == nullptr || snapshot_->base->hashes.empty()) return codec_->id;
  MutexLock lock(&mu_);
  const bool base_is_gone = !not_as_delta_.empty() && as_delta_.empty();
  return base_is_gone ? codec_->id : CodecId::kDelta;
}

std::vector<Hash128> Uploader::Hashes() const {
  MutexLock lock(&mu_);
  return hashes_;
}

void Uploader::Restart() {
  failure_ = absl::OkStatus();
  to_send_.clear();
  to_offer_.clear();
  held_ = 0;
  uint64_t processed = 0;
  for (size_t i = 0; i < next_to_hash_; ++i) {
    if (first_with_.at(hashes_[i]) == i) {
      to_offer_.push_back(i);
    } else {
      ++held_;
      processed += snapshot_->chunks[i].bytes;
    }
  }
  counters_->processed_bytes = processed;
}

void Uploader::TakePlan(const Connection& connection) {
  const SendPlan plan = SendPlanFor(connection.round_trip(), hashers_, options_.clients);
  workers_ = std::clamp(plan.streams, hashers_, std::max(hashers_, snapshot_->chunks.size()));
  body_bytes_ = plan.body_bytes;
  senders_ = std::clamp<size_t>(options_.window_bytes / largest_chunk_bytes_, 1, workers_);
  window_bytes_ = options_.window_bytes / senders_;
}

absl::Status Uploader::Run(const Target& target) {
  TakePlan(*target.connection);
  {
    MutexLock lock(&mu_);
    if (HoldsAll()) return absl::OkStatus();
    working_ = hashers_;
    streams_.assign(workers_, nullptr);
  }
  for (size_t i = 0; i < hashers_; ++i) pool_->Schedule([this, &target, i] { Work(target, i); });
  std::vector<std::thread> more;
  for (size_t i = hashers_; i < senders_; ++i) {
    MutexLock lock(&mu_);
    try {
      more.emplace_back([this, &target, i] { Work(target, i); });
    } catch (const std::system_error&) {
      break;  // it is slower without
    }
    ++working_;
  }
  OfferAll(target);
  {
    MutexLock lock(&mu_);
    while (working_ > 0) changed_.Wait(&mu_);
  }
  for (std::thread& thread : more) thread.join();
  MutexLock lock(&mu_);
  return failure_;
}

bool Uploader::OfferIsDue() const {
  return to_offer_.size() >= kFewestOffered || (!to_offer_.empty() && hashed_ == snapshot_->chunks.size());
}

void Uploader::OfferAll(const Target& target) {
  while (true) {
    std::vector<size_t> batch;
    {
      MutexLock lock(&mu_);
      while (failure_.ok() && !HoldsAll() && !OfferIsDue()) changed_.Wait(&mu_);
      if (!failure_.ok() || HoldsAll()) return;
      const size_t count = std::min(to_offer_.size(), kMostOffered);
      batch.assign(to_offer_.begin(), to_offer_.begin() + static_cast<ptrdiff_t>(count));
      to_offer_.erase(to_offer_.begin(), to_offer_.begin() + static_cast<ptrdiff_t>(count));
    }
    if (const absl::Status status = Offer(target, batch); !status.ok()) Fail(status);
  }
}

absl::Status Uploader::Offer(const Target& target, const std::vector<size_t>& chunks) {
  v1::OfferChunksRequest request;
  *request.mutable_save() = target.save;
  {
    MutexLock lock(&mu_);
    for (const size_t chunk : chunks) {
      request.mutable_hashes()->append(hashes_[chunk].AsText());
    }
  }
  ESKER_ASSIGN_OR_RETURN(
      const v1::OfferChunksResponse response,
      target.connection->Call("OfferChunks", &v1::Store::Stub::OfferChunks, request,
                              Deadline::Sooner(target.deadline, Deadline::After(kOfferTimeoutMs))));
  if (response.missing().size() != chunks.size()) {
    return absl::InternalError(StrCat("server ", target.connection->server(), ": OfferChunks: expected ",
                                      chunks.size(), " answers, found ", response.missing().size()));
  }
  MutexLock lock(&mu_);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (response.missing()[i] != 0) {
      to_send_.push_back(chunks[i]);
    } else {
      if (!was_sent_[chunks[i]]) counters_->deduplicated_bytes += snapshot_->chunks[chunks[i]].bytes;
      Held(chunks[i]);
    }
  }
  changed_.NotifyAll();
  return absl::OkStatus();
}

void Uploader::Held(size_t chunk) {
  ++held_;
  counters_->processed_bytes += snapshot_->chunks[chunk].bytes;
  if (HoldsAll()) changed_.NotifyAll();
}

void Uploader::Fail(const absl::Status& status) {
  MutexLock lock(&mu_);
  if (failure_.ok()) failure_ = status;
  for (PutStream* stream : streams_) {
    if (stream != nullptr) stream->Cancel();
  }
  changed_.NotifyAll();
}

void Uploader::SetStream(size_t worker, PutStream* stream) {
  MutexLock lock(&mu_);
  streams_[worker] = stream;
  if (stream != nullptr && !failure_.ok()) stream->Cancel();
}

void Uploader::Work(const Target& target, size_t worker) {
  std::unique_ptr<PutStream> stream;
  while (true) {
    const Job job = NextJob(worker, stream == nullptr ? 0 : stream->unacknowledged_bytes());
    absl::Status status;
    switch (job.kind) {
      case Job::kHash:
        Hash(job.chunk);
        break;
      case Job::kSend:
        status = Send(target, worker, job.chunk, &stream);
        break;
      case Job::kCollect:
        status = Collect(stream.get(), /*wait=*/true);
        break;
      case Job::kStop:
        break;
    }
    if (job.kind == Job::kStop) break;
    if (status.ok() && stream != nullptr) status = Collect(stream.get(), /*wait=*/false);
    if (!status.ok()) Fail(status);
  }
  if (stream != nullptr) {
    // How it ends no longer matters: each chunk is acknowledged, or the stream was cancelled with the others.
    static_cast<void>(stream->Finish());
    SetStream(worker, nullptr);
    stream.reset();
  }
  MutexLock lock(&mu_);
  --working_;
  changed_.NotifyAll();
}

Uploader::Job Uploader::NextJob(size_t worker, uint64_t unacknowledged_bytes) {
  const bool has_room = worker < senders_ && (unacknowledged_bytes == 0 ||
                                              unacknowledged_bytes + largest_chunk_bytes_ <= window_bytes_);
  const bool hash_first = worker < hashers_ && hashers_ < senders_;
  MutexLock lock(&mu_);
  while (true) {
    if (!failure_.ok()) return {Job::kStop};
    // Where sending means waiting, and others do it, too, hashing must not wait for it.
    if (hash_first && next_to_hash_ < snapshot_->chunks.size()) return {Job::kHash, next_to_hash_++};
    if (!to_send_.empty() && has_room) {
      const size_t chunk = to_send_.front();
      to_send_.pop_front();
      return {Job::kSend, chunk};
    }
    if (worker < hashers_ && next_to_hash_ < snapshot_->chunks.size()) {
      return {Job::kHash, next_to_hash_++};
    }
    if (unacknowledged_bytes > 0) return {Job::kCollect};
    if (HoldsAll()) return {Job::kStop};
    changed_.Wait(&mu_);
  }
}

void Uploader::Hash(size_t chunk) {
  const ByteView raw = snapshot_->bytes(snapshot_->chunks[chunk]);
  Checksums sums;
  // What goes out as it is needs its CRC, too.
  const bool both = codec_ == nullptr;
  if (both) {
    sums = ChecksumsOf(raw);
  } else {
    sums.hash = HashOf(raw);
  }
  MutexLock lock(&mu_);
  hashes_[chunk] = sums.hash;
  if (both) raw_crcs_[chunk] = sums.crc32c;
  ++hashed_;
  if (first_with_.try_emplace(sums.hash, chunk).second) {
    to_offer_.push_back(chunk);
  } else {
    counters_->deduplicated_bytes += snapshot_->chunks[chunk].bytes;
    Held(chunk);
  }
  if (OfferIsDue()) changed_.NotifyAll();
}

absl::Status Uploader::Send(const Target& target, size_t worker, size_t chunk,
                            std::unique_ptr<PutStream>* stream) {
  // A server ends a stream that was idle for long.
  if (*stream != nullptr && (*stream)->unacknowledged_bytes() == 0 && (*stream)->HasEnded()) {
    SetStream(worker, nullptr);
    stream->reset();
  }
  if (*stream == nullptr) {
    Connection* const connection = target.connection;
    *stream =
        std::make_unique<PutStream>(snapshot_->raw_bytes <= kSmallPartBytes ? connection->ControlChannel()
                                                                            : connection->DataChannel(worker),
                                    connection->server(), target.save, body_bytes_, target.deadline);
    SetStream(worker, stream->get());
  }
  const ByteView raw = snapshot_->bytes(snapshot_->chunks[chunk]);
  ChunkInfo info;
  info.dtype = snapshot_->chunks[chunk].dtype;
  info.raw_bytes = raw.size();
  std::optional<uint32_t> raw_crc;
  {
    MutexLock lock(&mu_);
    info.hash = hashes_[chunk];
    raw_crc = raw_crcs_[chunk];
    was_sent_[chunk] = true;
  }
  ByteView stored = raw;
  std::shared_ptr<const void> keep;
  if (codec_ != nullptr) {
    const std::shared_ptr<std::vector<std::byte>> encoded = buffers_.Take();
    info.codec = Encode(chunk, encoded.get());
    if (info.codec == CodecId::kDelta) {
      MutexLock lock(&mu_);
      as_delta_.insert(chunk);
    }
    if (info.codec != CodecId::kRaw) {
      stored = *encoded;
      keep = encoded;
    }
  }
  if (keep == nullptr) keep = snapshot_->block->View();
  info.stored_bytes = stored.size();
  info.stored_crc32c = info.codec == CodecId::kRaw && raw_crc.has_value() ? *raw_crc : Crc32c(stored);
  counters_->sent_bytes += stored.size();
  return (*stream)->Send(chunk, info, stored, keep);
}

bool Uploader::MayBeDelta(size_t chunk) const {
  if (!options_.delta || snapshot_->base == nullptr) return false;
  const SnapshotBase& base = *snapshot_->base;
  // Behind the tensors, the chunks of items may be of another number and length.
  if (chunk >= base.hashes.size() || base.chunks[chunk].bytes != snapshot_->chunks[chunk].bytes) return false;
  MutexLock lock(&mu_);
  return !not_as_delta_.contains(chunk);
}

CodecId Uploader::Encode(size_t chunk, std::vector<std::byte>* to) const {
  const SnapshotChunk& part = snapshot_->chunks[chunk];
  const ByteView raw = snapshot_->bytes(part);
  if (MayBeDelta(chunk)) {
    const SnapshotBase& base = *snapshot_->base;
    const ByteView base_raw = snapshot_->bytes(base.chunks[chunk]);
    if (EncodeDelta(*codec_, raw, base_raw, base.hashes[chunk], part.dtype, to)) return CodecId::kDelta;
  }
  return codec_->encode(raw, part.dtype, to) ? codec_->id : CodecId::kRaw;
}

absl::Status Uploader::Collect(PutStream* stream, bool wait) {
  while (true) {
    ESKER_ASSIGN_OR_RETURN(const std::optional<PutAck> ack, stream->TakeAck(wait));
    if (!ack.has_value()) return absl::OkStatus();
    wait = false;
    MutexLock lock(&mu_);
    if (absl::IsFailedPrecondition(ack->status) && as_delta_.erase(ack->tag) > 0) {
      not_as_delta_.insert(ack->tag);
      to_send_.push_back(ack->tag);  // whole
      changed_.NotifyAll();
      continue;
    }
    if (!ack->status.ok()) return Annotate(ack->status, StrCat("chunk ", ack->tag, " of the part"));
    Held(ack->tag);
  }
}

}  // namespace esker
