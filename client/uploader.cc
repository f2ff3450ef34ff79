#include "client/uploader.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"

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
                   SaveCounters* counters)
    : snapshot_(snapshot),
      options_(options),
      pool_(pool),
      counters_(counters),
      workers_(std::clamp<size_t>(snapshot->chunks.size(), 1, static_cast<size_t>(pool->threads()))),
      senders_(std::clamp<size_t>(options.window_bytes / LargestChunk(*snapshot), 1, workers_)),
      window_bytes_(options.window_bytes / senders_),
      largest_chunk_bytes_(LargestChunk(*snapshot)),
      streams_(workers_, nullptr),
      hashes_(snapshot->chunks.size()),
      was_sent_(snapshot->chunks.size(), false) {}

Uploader::~Uploader() = default;

absl::Status Uploader::Upload(Connection* connection, const v1::SaveContext& save, const Deadline& deadline) {
  {
    MutexLock lock(&mu_);
    Restart();
  }
  return Run({connection, save, deadline});
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

absl::Status Uploader::Run(const Target& target) {
  {
    MutexLock lock(&mu_);
    if (HoldsAll()) return absl::OkStatus();
    working_ = workers_;
  }
  for (size_t i = 0; i < workers_; ++i) pool_->Schedule([this, &target, i] { Work(target, i); });
  OfferAll(target);
  MutexLock lock(&mu_);
  while (working_ > 0) changed_.Wait(&mu_);
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
  MutexLock lock(&mu_);
  while (true) {
    if (!failure_.ok()) return {Job::kStop};
    if (!to_send_.empty() && has_room) {
      const size_t chunk = to_send_.front();
      to_send_.pop_front();
      return {Job::kSend, chunk};
    }
    if (next_to_hash_ < snapshot_->chunks.size()) return {Job::kHash, next_to_hash_++};
    if (unacknowledged_bytes > 0) return {Job::kCollect};
    if (HoldsAll()) return {Job::kStop};
    changed_.Wait(&mu_);
  }
}

void Uploader::Hash(size_t chunk) {
  const Hash128 hash = HashOf(snapshot_->bytes(snapshot_->chunks[chunk]));
  MutexLock lock(&mu_);
  hashes_[chunk] = hash;
  ++hashed_;
  if (first_with_.try_emplace(hash, chunk).second) {
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
                                    connection->server(), target.save, target.deadline);
    SetStream(worker, stream->get());
  }
  const ByteView raw = snapshot_->bytes(snapshot_->chunks[chunk]);
  ChunkInfo info;
  info.dtype = snapshot_->chunks[chunk].dtype;
  info.raw_bytes = raw.size();
  {
    MutexLock lock(&mu_);
    info.hash = hashes_[chunk];
    was_sent_[chunk] = true;
  }
  ByteView stored = raw;
  std::shared_ptr<const void> keep;
  if (options_.codec != nullptr) {
    const std::shared_ptr<std::vector<std::byte>> encoded = buffers_.Take();
    if (options_.codec->encode(raw, info.dtype, encoded.get())) {
      info.codec = options_.codec->id;
      stored = *encoded;
      keep = encoded;
    }
  }
  if (keep == nullptr) keep = snapshot_->block->View();
  info.stored_bytes = stored.size();
  info.stored_crc32c = Crc32c(stored);
  counters_->sent_bytes += stored.size();
  return (*stream)->Send(chunk, info, stored, keep);
}

absl::Status Uploader::Collect(PutStream* stream, bool wait) {
  while (true) {
    ESKER_ASSIGN_OR_RETURN(const std::optional<PutAck> ack, stream->TakeAck(wait));
    if (!ack.has_value()) return absl::OkStatus();
    if (!ack->status.ok()) return Annotate(ack->status, StrCat("chunk ", ack->tag, " of the part"));
    MutexLock lock(&mu_);
    Held(ack->tag);
    wait = false;
  }
}

}  // namespace esker
