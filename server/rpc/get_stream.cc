#include "server/rpc/get_stream.h"

#include <algorithm>
#include <string>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"
#include "server/rpc/frames.h"

namespace esker {
namespace {

constexpr uint64_t kMaxStreamReadBytes = 16 << 20;

// A message of stored bytes that refers to the chunk's memory and holds it until gRPC has sent it.
grpc::ByteBuffer BodyMessage(const std::shared_ptr<HeldChunk>& chunk, ByteView piece) {
  auto* holder = new std::shared_ptr<HeldChunk>(chunk);
  const grpc::Slice slice(
      const_cast<std::byte*>(piece.data()), piece.size(),
      [](void* held) { delete static_cast<std::shared_ptr<HeldChunk>*>(held); }, holder);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

GetStream::GetStream(RpcBackend* backend, grpc::CallbackServerContext* context)
    : RawStream(backend, context, "GetChunks") {
  Begin();
}

void GetStream::OnMessage(grpc::ByteBuffer* message) {
  return greeted_ ? TakeWant(message) : TakeHello(message);
}

std::optional<absl::Status> GetStream::OnLastMessage(bool by_client) {
  if (!by_client) return absl::CancelledError("GetChunks: the client is gone");
  MutexLock lock(&wants_mu_);
  closing_ = true;
  if (!wants_.empty()) return std::nullopt;
  return absl::OkStatus();
}

bool GetStream::HeldTooLong(int64_t now_ms) {
  MutexLock lock(&wants_mu_);
  ForgetGoneLocked();
  return !sent_.empty() &&
         now_ms - sent_.front().at_ms >= static_cast<int64_t>(backend().options.stalled_chunk_timeout_ms);
}

void GetStream::ForgetGoneLocked() {
  while (!sent_.empty() && sent_.front().chunk.expired()) sent_.pop_front();
}

void GetStream::Fail(const absl::Status& status) { End(Annotate(status, "GetChunks")); }

void GetStream::TakeHello(grpc::ByteBuffer* message) {
  const absl::StatusOr<std::string> frame = FlattenControlFrame(message);
  if (!frame.ok()) return Fail(Annotate(frame.status(), "expected kHello"));
  const absl::StatusOr<std::string_view> body = DecodeHello(AsBytes(*frame));
  if (!body.ok()) return Fail(Annotate(body.status(), "expected kHello first"));
  if (body->size() != sizeof(lease_id_)) {
    return Fail(absl::InvalidArgumentError(
        StrCat("expected a lease id of 8 bytes in kHello, found ", body->size(), " bytes")));
  }
  lease_id_ = LoadLittle<uint64_t>(AsBytes(*body).data());
  greeted_ = true;
  BeginWork();
  backend().calls.Schedule([this] {
    const absl::Status held = RenewNowAndThen();
    if (held.ok()) {
      ReadNext(Awaiting::kHead);
    } else {
      Fail(held);
    }
    EndWork();
  });
}

void GetStream::TakeWant(grpc::ByteBuffer* message) {
  const absl::StatusOr<std::string> frame = FlattenControlFrame(message);
  if (!frame.ok()) return Fail(Annotate(frame.status(), "expected kWant"));
  const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(AsBytes(*frame));
  if (!prefix.ok()) return Fail(Annotate(prefix.status(), "expected kWant"));
  const absl::StatusOr<Hash128> hash = DecodeWant(AsBytes(*frame));
  if (!hash.ok()) return Fail(Annotate(hash.status(), StrCat("expected kWant (tag ", prefix->tag, ")")));
  bool read_on = false;
  {
    MutexLock lock(&wants_mu_);
    wants_.push_back({.tag = prefix->tag, .hash = *hash, .answer = {}});
    read_on = ++in_flight_ < kMaxGetsInFlight;
    paused_ = !read_on;
    StartReadsLocked();
  }
  if (read_on) ReadNext(Awaiting::kHead);
}

absl::Status GetStream::RenewNowAndThen() {
  {
    MutexLock lock(&wants_mu_);
    const int64_t now_ms = NowMillis();
    if (renewed_ms_ != 0 && now_ms - renewed_ms_ < backend().RenewIntervalMillis()) return absl::OkStatus();
    renewed_ms_ = now_ms;
  }
  const absl::Status held = backend().store->RenewRead(lease_id_);
  if (held.ok()) return held;
  // Without it garbage collection may take what is read, so nothing more is. NOT_FOUND as the answer to a
  // want would say that the chunk is missing.
  Fail(held);
  return absl::FailedPreconditionError(std::string(held.message()));
}

void GetStream::StartReadsLocked() {
  for (size_t i = 0; i < wants_.size(); ++i) {
    if (wants_[i].reading) continue;
    if (read_bytes_ + LargestRecordBytes() > kMaxStreamReadBytes) break;
    wants_[i].reading = true;
    read_bytes_ += LargestRecordBytes();
    BeginWork();
    // Within the lock, so that reads get memory in the order in which they are sent: one that has it must not
    // wait for one that has none.
    backend().reader->Read(
        /*client=*/this, wants_[i].hash, ReadMode::kShared,
        [this] { return ended() ? absl::CancelledError("the stream has ended") : RenewNowAndThen(); },
        [this, number = first_number_ + i](HeldChunkOr answer) {
          OnRead(number, std::move(answer));
          EndWork();
        });
  }
  // It may have ended, and been withdrawn, while these got into the line.
  if (ended()) Withdraw();
}

void GetStream::Withdraw() { backend().reader->Withdraw(this); }

void GetStream::OnRead(uint64_t number, HeldChunkOr answer) {
  bool over = false;
  {
    MutexLock lock(&wants_mu_);
    read_bytes_ -= LargestRecordBytes();
    if (answer.ok()) read_bytes_ += (*answer)->stored().size();
    wants_[number - first_number_].answer = std::move(answer);
    SendReadyLocked();
    StartReadsLocked();
    over = closing_ && wants_.empty();
  }
  if (over) End(absl::OkStatus());
}

void GetStream::SendReadyLocked() {
  while (!wants_.empty() && wants_.front().answer) {
    const Want want = std::move(wants_.front());
    wants_.pop_front();
    ++first_number_;
    if (want.answer->ok()) {
      SendChunkLocked(want.tag, **want.answer);
    } else {
      Send(ToByteBuffer(EncodeErrorFrame(want.tag, want.answer->status())), [this] { OnSent(0, {}); });
    }
  }
}

void GetStream::SendChunkLocked(uint64_t tag, std::shared_ptr<HeldChunk> chunk) {
  const ByteView stored = chunk->stored();
  const auto sent = [this, bytes = stored.size(), held = std::weak_ptr(chunk)] { OnSent(bytes, held); };
  Send(ToByteBuffer(EncodeChunkFrame(tag, chunk->info())),
       stored.empty() ? std::function<void()>(sent) : nullptr);
  for (uint64_t at = 0; at < stored.size(); at += kFrameBodyBytes) {
    const ByteView piece = stored.subspan(at, std::min(kFrameBodyBytes, stored.size() - at));
    const bool last = at + piece.size() == stored.size();
    Send(BodyMessage(chunk, piece), last ? std::function<void()>(sent) : nullptr);
  }
}

void GetStream::OnSent(uint64_t read_bytes, std::weak_ptr<HeldChunk> chunk) {
  bool read_on = false;
  {
    MutexLock lock(&wants_mu_);
    ForgetGoneLocked();
    if (!chunk.expired()) sent_.push_back({.chunk = std::move(chunk), .at_ms = NowMillis()});
    --in_flight_;
    read_bytes_ -= read_bytes;
    read_on = std::exchange(paused_, false);
    StartReadsLocked();
  }
  if (read_on) ReadNext(Awaiting::kHead);
}

}  // namespace esker
