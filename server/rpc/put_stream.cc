#include "server/rpc/put_stream.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "format/base/status.h"
#include "format/base/streaming_copy.h"
#include "format/base/text.h"
#include "format/frame.h"
#include "server/rpc/frames.h"

namespace esker {
namespace {

constexpr int64_t kSaveCheckIntervalMs = 1000;

absl::Status DamagedOnItsWay(uint64_t tag, const ChunkInfo& info, uint32_t crc) {
  return absl::DataLossError(StrCat("chunk ", info.hash.ToHex(), " (tag ", tag, ", ", info.stored_bytes,
                                    " bytes) was damaged on its way: expected CRC-32C ",
                                    absl::Hex(info.stored_crc32c, absl::kZeroPad8), ", found ",
                                    absl::Hex(crc, absl::kZeroPad8), "; send it again"));
}

}  // namespace

PutStream::PutStream(RpcBackend* backend, grpc::CallbackServerContext* context)
    : RawStream(backend, context, "PutChunks") {
  Begin();
}

void PutStream::OnMessage(grpc::ByteBuffer* message) {
  switch (expecting_) {
    case Expecting::kHello:
      return TakeHello(message);
    case Expecting::kHead:
      return TakeHead(message);
    case Expecting::kBody:
      break;
  }
  const absl::StatusOr<bool> complete = TakeBody(message);
  if (!complete.ok()) return Fail(complete.status());
  if (*complete) return FinishChunk();
  ReadNext(Awaiting::kRest, chunk_deadline_ms_);
}

std::optional<absl::Status> PutStream::OnLastMessage(bool by_client) {
  record_ = Buffer();
  if (!by_client) return absl::CancelledError("PutChunks: the client is gone");
  if (expecting_ != Expecting::kBody) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("PutChunks: the client closed the stream in the middle of chunk ",
                                           info_.hash.ToHex(), " (tag ", tag_, "): expected ",
                                           info_.stored_bytes, " bytes, got ", received_bytes_));
}

void PutStream::Fail(const absl::Status& status) {
  record_ = Buffer();
  End(Annotate(status, "PutChunks"));
}

void PutStream::TakeHello(grpc::ByteBuffer* message) {
  const absl::StatusOr<std::string> frame = FlattenControlFrame(message);
  if (!frame.ok()) return Fail(Annotate(frame.status(), "expected kHello"));
  const absl::StatusOr<std::string_view> body = DecodeHello(AsBytes(*frame));
  if (!body.ok()) return Fail(Annotate(body.status(), "expected kHello first"));
  if (!save_.ParseFromArray(body->data(), static_cast<int>(body->size()))) {
    return Fail(absl::InvalidArgumentError("the body of kHello is no SaveContext"));
  }
  part_ = ToPartRef(save_);
  BeginWork();
  backend().calls.Schedule([this] {
    const absl::Status open = backend().coordinator->CheckSaveOpen(save_);
    if (open.ok()) {
      {
        MutexLock lock(&puts_mu_);
        save_checked_ms_ = NowMillis();
      }
      expecting_ = Expecting::kHead;
      ReadNext(Awaiting::kHead);
    } else {
      Fail(open);
    }
    EndWork();
  });
}

void PutStream::TakeHead(grpc::ByteBuffer* message) {
  const absl::StatusOr<std::string> frame = FlattenControlFrame(message);
  if (!frame.ok()) return Fail(Annotate(frame.status(), "expected kChunk"));
  const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(AsBytes(*frame));
  if (!prefix.ok()) return Fail(Annotate(prefix.status(), "expected kChunk"));
  absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(AsBytes(*frame));
  if (!info.ok()) return Fail(Annotate(info.status(), StrCat("expected kChunk (tag ", prefix->tag, ")")));

  tag_ = prefix->tag;
  info_ = *info;
  received_bytes_ = 0;
  crc_ = 0;
  bool known_tag = false;
  {
    MutexLock lock(&puts_mu_);
    known_tag = tags_in_flight_.contains(tag_);
  }
  if (known_tag) {
    return Fail(absl::InvalidArgumentError(
        StrCat("tag ", tag_, " stands for a chunk that has no kAck yet; expected another tag for chunk ",
               info_.hash.ToHex())));
  }
  AwaitBuffer();
}

void PutStream::AwaitBuffer() {
  BeginWork();
  backend().store->buffers()->AcquireAsync(RecordBytes(info_.stored_bytes), [this](Buffer buffer) {
    // On a thread that just gave memory back, perhaps within another stream's lock: only hand it over.
    auto record = std::make_shared<Buffer>(std::move(buffer));
    backend().streams.Schedule([this, record] {
      record_ = std::move(*record);
      OnBuffer();
      EndWork();
    });
  });
}

void PutStream::OnBuffer() {
  if (ended()) {
    record_ = Buffer();
    return;
  }
  if (info_.stored_bytes == 0) return FinishChunk();
  expecting_ = Expecting::kBody;
  chunk_deadline_ms_ = NowMillis() + static_cast<int64_t>(backend().options.stalled_chunk_timeout_ms);
  ReadNext(Awaiting::kRest, chunk_deadline_ms_);
}

absl::StatusOr<bool> PutStream::TakeBody(grpc::ByteBuffer* message) {
  const uint64_t length = message->Length();
  const uint64_t missing = info_.stored_bytes - received_bytes_;
  if (length == 0 || length > missing) {
    return absl::InvalidArgumentError(StrCat("expected 1 to ", missing, " bytes of the body of chunk ",
                                             info_.hash.ToHex(), " (tag ", tag_, ", ", received_bytes_,
                                             " of ", info_.stored_bytes,
                                             " bytes are in), found a message of ", length, " bytes"));
  }
  ESKER_RETURN_IF_ERROR(ForEachSlice(message, [this](ByteView slice) {
    std::byte* const to = record_.data() + PayloadOffset(info_.stored_bytes) + received_bytes_;
    crc_ = Crc32c(slice, crc_);
    StreamingCopy(to, slice.data(), slice.size());
    received_bytes_ += slice.size();
  }));
  return received_bytes_ == info_.stored_bytes;
}

void PutStream::FinishChunk() {
  // From the moment that it is counted below, another chunk's end may set off the next read, and that what
  // follows it.
  expecting_ = Expecting::kHead;
  const uint64_t tag = tag_;
  const ChunkInfo info = info_;
  const uint32_t crc = crc_;
  auto record = std::make_shared<Buffer>(std::move(record_));
  BeginWork();
  bool read_on = false;
  {
    MutexLock lock(&puts_mu_);
    tags_in_flight_.insert(tag);
    read_on = tags_in_flight_.size() < kMaxPutsInFlight;
    paused_ = !read_on;
  }
  backend().streams.Schedule([this, tag, info, crc, record] {
    if (crc == info.stored_crc32c) return PutChunk(tag, info, std::move(*record));
    *record = Buffer();
    Acknowledge(tag, DamagedOnItsWay(tag, info, crc));
  });
  if (read_on) ReadNext(Awaiting::kHead);
}

absl::Status PutStream::CheckSaveNowAndThen() {
  {
    MutexLock lock(&puts_mu_);
    if (NowMillis() - save_checked_ms_ < kSaveCheckIntervalMs) return absl::OkStatus();
    save_checked_ms_ = NowMillis();
  }
  return backend().coordinator->CheckSaveOpen(save_);
}

void PutStream::PutChunk(uint64_t tag, const ChunkInfo& info, Buffer record) {
  // A save that ended in the meantime (fenced, aborted) must not go on filling the disk.
  if (const absl::Status open = CheckSaveNowAndThen(); !open.ok()) {
    record = Buffer();
    End(Annotate(open, "PutChunks"));
    return Acknowledge(tag, open);
  }
  backend().store->Put(part_, info, std::move(record), [this, tag](absl::Status status) {
    // On one of the disk's threads: sending must not hold it up.
    backend().streams.Schedule([this, tag, status] { Acknowledge(tag, status); });
  });
}

void PutStream::Acknowledge(uint64_t tag, const absl::Status& status) {
  bool read_on = false;
  {
    // Before the client hears of it: it may use the tag again at once.
    MutexLock lock(&puts_mu_);
    tags_in_flight_.erase(tag);
    read_on = std::exchange(paused_, false);
  }
  Send(ToByteBuffer(EncodeAck(tag, status)));
  if (read_on) ReadNext(Awaiting::kHead);
  EndWork();
}

}  // namespace esker
