#include "server/store/delta_reads.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/delta.h"

namespace esker::store {
namespace {

// Each waits for the disk while it reads a base.
constexpr int kThreads = 4;

ChunkReadOr ReadAndWait(ChunkIo* io, const Hash128& hash) {
  Mutex mu;
  CondVar ended;
  std::optional<ChunkReadOr> result;
  io->Read(hash, [&](ChunkReadOr chunk) {
    MutexLock lock(&mu);
    result = std::move(chunk);
    ended.NotifyAll();  // under the lock: afterwards the condition may be gone
  });
  MutexLock lock(&mu);
  while (!result.has_value()) ended.Wait(&mu);
  return *std::move(result);
}

}  // namespace

struct DeltaReads::Scratch {
  std::vector<std::byte> raw;   // the difference, and then the chunk
  std::vector<std::byte> base;  // decoded
  Hash128 base_hash;
};

DeltaReads::DeltaReads(BufferPool* buffers, ChunkIo* io)
    : buffers_(buffers), io_(io), workers_(kThreads, "esker-delta") {}

DeltaReads::~DeltaReads() {
  MutexLock lock(&mu_);
  while (under_way_ > 0) idle_.Wait(&mu_);
}

void DeltaReads::Read(const Hash128& hash, ReadDone given_done) {
  {
    MutexLock lock(&mu_);
    ++under_way_;
  }
  const ReadDone done = [this, given_done = std::move(given_done)](ChunkReadOr chunk) {
    given_done(std::move(chunk));
    MutexLock lock(&mu_);
    if (--under_way_ == 0) idle_.NotifyAll();
  };
  io_->Read(hash, [this, done](ChunkReadOr chunk) {
    if (!chunk.ok() || (*chunk)->info.codec != CodecId::kDelta) return done(std::move(chunk));
    workers_.Schedule([this, delta = *std::move(chunk), done]() mutable { Resolve(std::move(delta), done); });
  });
}

void DeltaReads::Resolve(std::shared_ptr<const ChunkRead> delta, const ReadDone& done) {
  thread_local Scratch scratch;
  ChunkInfo info = delta->info;
  absl::Status status = DecodeDifference(std::move(delta), &scratch);
  if (status.ok()) status = AddBase(info, &scratch);
  if (!status.ok()) return done(Annotate(status, StrCat("chunk ", info.hash.ToHex())));
  info.codec = CodecId::kRaw;
  info.stored_bytes = info.raw_bytes;
  auto whole = std::make_shared<ChunkRead>();
  whole->record = buffers_->Acquire(RecordBytes(info.raw_bytes));
  const MutableBytes stored = whole->record.bytes().subspan(PayloadOffset(info.raw_bytes), info.raw_bytes);
  std::copy(scratch.raw.begin(), scratch.raw.end(), stored.begin());
  info.stored_crc32c = Crc32c(stored);
  whole->info = info;
  done(std::move(whole));
}

absl::Status DeltaReads::DecodeDifference(std::shared_ptr<const ChunkRead> chunk, Scratch* scratch) {
  ESKER_ASSIGN_OR_RETURN(const Delta delta, ParseDelta(chunk->stored()));
  scratch->base_hash = delta.base;
  scratch->raw.resize(chunk->info.raw_bytes);
  return delta.codec->decode(delta.difference, chunk->info.dtype, scratch->raw);
}

absl::Status DeltaReads::AddBase(const ChunkInfo& info, Scratch* scratch) {
  const absl::Status status = [&]() -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<const ChunkRead> base, ReadAndWait(io_, scratch->base_hash));
    const Codec* const codec = FindCodec(base->info.codec);
    if (codec == nullptr || base->info.raw_bytes != info.raw_bytes) {
      return absl::DataLossError(StrCat("it has codec ", CodecName(base->info.codec), " and ",
                                        base->info.raw_bytes, " raw bytes, expected were a whole chunk and ",
                                        info.raw_bytes));
    }
    if (codec->id == CodecId::kRaw) {
      XorInto(scratch->raw, base->stored());
      return absl::OkStatus();
    }
    scratch->base.resize(info.raw_bytes);
    ESKER_RETURN_IF_ERROR(codec->decode(base->stored(), base->info.dtype, scratch->base));
    XorInto(scratch->raw, scratch->base);
    return absl::OkStatus();
  }();
  return Annotate(status, StrCat("its base ", scratch->base_hash.ToHex()));
}

}  // namespace esker::store
