#include "client/chunk_stream.h"

#include <utility>
#include <vector>

#include "client/rpc_status.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "grpcpp/support/slice.h"

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace esker {
namespace {

// What may wait for Read before no more is taken from the network.
constexpr uint64_t kReceiveAheadBytes = 4 << 20;

// gRPC orders the creation of a slice before its destruction, but with atomics that ThreadSanitizer does not
// see: Debian's gRPC is not built with it.
#ifdef __SANITIZE_THREAD__
void HandOver(void* to_grpc) { __tsan_release(to_grpc); }
void TakeBack(void* from_grpc) { __tsan_acquire(from_grpc); }
#else
void HandOver(void*) {}
void TakeBack(void*) {}
#endif

void Drop(void* keep) {
  TakeBack(keep);
  delete static_cast<std::shared_ptr<const void>*>(keep);
}

}  // namespace

grpc::ByteBuffer ReferTo(ByteView bytes, const std::shared_ptr<const void>& keep) {
  // gRPC takes a pointer to non-const, and only reads.
  auto* from = const_cast<std::byte*>(bytes.data());
  auto* const held = new std::shared_ptr<const void>(keep);
  HandOver(held);
  const grpc::Slice slice(from, bytes.size(), &Drop, held);
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer CopyOf(std::string_view text) {
  const grpc::Slice slice(text.data(), text.size());
  return grpc::ByteBuffer(&slice, 1);
}

absl::StatusOr<std::string> ToString(const grpc::ByteBuffer& message, uint64_t limit) {
  if (message.Length() > limit) {
    return absl::InvalidArgumentError(
        StrCat("message: expected at most ", limit, " bytes, found ", message.Length()));
  }
  std::vector<grpc::Slice> slices;
  std::string text;
  // An empty message has no buffer.
  if (message.Length() == 0) return text;
  if (const grpc::Status status = message.Dump(&slices); !status.ok()) {
    return absl::InternalError(StrCat("message: its bytes can't be read: ", status.error_message()));
  }
  text.reserve(message.Length());
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

ChunkStream::ChunkStream(std::shared_ptr<grpc::Channel> channel, std::string server, std::string call,
                         const Deadline& deadline)
    : channel_(std::move(channel)), server_(std::move(server)), call_(std::move(call)), stub_(channel_) {
  context_.set_deadline(deadline.ForGrpc());
  rpc_ = stub_.PrepareCall(&context_, "/esker.v1.Store/" + call_, &queue_);
  rpc_->StartCall(Tag(kStarted));
  ++pending_;
  writing_ = true;
}

ChunkStream::~ChunkStream() {
  if (!finished_) {
    context_.TryCancel();
    Settle();
  }
  while (pending_ > 0) Await();
  rpc_.reset();
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

void ChunkStream::StartRead() {
  rpc_->Read(&incoming_, Tag(kRead));
  ++pending_;
  reading_ = true;
}

bool ChunkStream::Await(const Deadline& deadline) {
  void* tag = nullptr;
  bool ok = false;
  if (queue_.AsyncNext(&tag, &ok, deadline.ForGrpc()) != grpc::CompletionQueue::GOT_EVENT) return false;
  --pending_;
  Handle(static_cast<Event>(reinterpret_cast<intptr_t>(tag)), ok);
  return true;
}

void ChunkStream::Handle(Event event, bool ok) {
  switch (event) {
    case kStarted:
    case kWritten:
      writing_ = false;
      if (!ok) broken_ = true;
      if (event == kStarted && ok) StartRead();
      return;
    case kRead:
      reading_ = false;
      if (!ok) {
        broken_ = true;
        return;
      }
      received_bytes_ += incoming_.Length();
      received_.emplace_back();
      received_.back().Swap(&incoming_);
      incoming_.Clear();
      if (received_bytes_ < kReceiveAheadBytes) StartRead();
      return;
    case kFinished:
      finished_ = true;
      return;
  }
}

void ChunkStream::Await() {
  void* tag = nullptr;
  bool ok = false;
  ESKER_CHECK(queue_.Next(&tag, &ok));
  --pending_;
  Handle(static_cast<Event>(reinterpret_cast<intptr_t>(tag)), ok);
}

void ChunkStream::Settle() {
  while (writing_ || reading_) Await();
  if (!finishing_) {
    finishing_ = true;
    rpc_->Finish(&status_, Tag(kFinished));
    ++pending_;
  }
  while (!finished_) Await();
}

absl::Status ChunkStream::Broken() {
  Settle();
  if (!status_.ok()) return FromGrpc(status_, server_, call_);
  return absl::UnavailableError(StrCat("server ", server_, ": ", call_, ": the server ended the stream"));
}

absl::Status ChunkStream::Write(const grpc::ByteBuffer& message) {
  while (writing_ && !broken_) Await();
  if (broken_) return Broken();
  rpc_->Write(message, Tag(kWritten));
  ++pending_;
  writing_ = true;
  return absl::OkStatus();
}

bool ChunkStream::HasMessage() {
  const Deadline now = Deadline::After(0);
  while (received_.empty() && !broken_ && Await(now)) {
  }
  return !received_.empty();
}

absl::StatusOr<grpc::ByteBuffer> ChunkStream::Read(const Deadline& deadline) {
  while (received_.empty()) {
    if (broken_) return Broken();
    if (!Await(deadline)) {
      return absl::DeadlineExceededError(StrCat("server ", server_, ": ", call_, ": no message in time"));
    }
  }
  grpc::ByteBuffer message;
  message.Swap(&received_.front());
  received_.pop_front();
  received_bytes_ -= message.Length();
  if (received_bytes_ < kReceiveAheadBytes && !reading_ && !broken_) StartRead();
  return message;
}

absl::Status ChunkStream::Finish() {
  while (writing_ && !broken_) Await();
  if (!broken_) {
    rpc_->WritesDone(Tag(kWritten));
    ++pending_;
    writing_ = true;
  }
  // The server answers with its status, which shows as a read without a message.
  while (!broken_) {
    received_.clear();
    received_bytes_ = 0;
    if (!reading_) StartRead();
    Await();
  }
  Settle();
  return FromGrpc(status_, server_, call_);
}

}  // namespace esker
