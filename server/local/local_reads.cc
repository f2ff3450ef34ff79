#include "server/local/local_reads.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"

namespace esker {

LocalReads::~LocalReads() {
  {
    MutexLock lock(&mu_);
    ended_ = true;
  }
  backend_->reader->Withdraw(this);
  MutexLock lock(&mu_);
  while (reading_ > 0) idle_.Wait(&mu_);
}

absl::Status LocalReads::Take(const v1::LocalReads& request) {
  ESKER_RETURN_IF_ERROR(Release(request));
  for (const std::string& frame : request.wants()) ESKER_RETURN_IF_ERROR(Want(request.lease_id(), frame));
  return absl::OkStatus();
}

absl::Status LocalReads::Release(const v1::LocalReads& request) {
  std::vector<std::shared_ptr<HeldChunk>> released;  // given back without the lock
  MutexLock lock(&mu_);
  for (const uint64_t tag : request.released()) {
    const auto held = wanted_.find(tag);
    if (held == wanted_.end() || held->second.chunk == nullptr) {
      return absl::InvalidArgumentError(StrCat("reads: chunk ", tag, " was released, but is not held"));
    }
    released.push_back(std::move(held->second.chunk));
    wanted_.erase(held);
  }
  return absl::OkStatus();
}

absl::Status LocalReads::Want(uint64_t lease_id, std::string_view frame) {
  ESKER_ASSIGN_OR_RETURN(const FramePrefix prefix, DecodeFramePrefix(AsBytes(frame)));
  ESKER_ASSIGN_OR_RETURN(const Hash128 hash, DecodeWant(AsBytes(frame)));
  const uint64_t tag = prefix.tag;
  {
    MutexLock lock(&mu_);
    if (wanted_.size() == kMaxLocalReads) {
      return absl::InvalidArgumentError(
          StrCat("reads: ", kMaxLocalReads, " chunks are wanted or held already, the most that may be"));
    }
    if (!wanted_.try_emplace(tag).second) {
      return absl::InvalidArgumentError(
          StrCat("reads: a chunk with the tag ", tag, " is wanted or held already"));
    }
    ++reading_;
  }
  backend_->reader->Read(
      /*client=*/this, hash, ReadMode::kShared, [this, lease_id] { return StillWanted(lease_id); },
      [this, tag](HeldChunkOr chunk) { OnRead(tag, std::move(chunk)); });
  return absl::OkStatus();
}

// Without the lease garbage collection may take what is read, so nothing more is. NOT_FOUND as the answer to
// a want would say that the chunk is missing.
absl::Status LocalReads::StillWanted(uint64_t lease_id) {
  const absl::Status held = backend_->store->RenewRead(lease_id);
  MutexLock lock(&mu_);
  if (!held.ok()) FailLocked(held);
  if (ended_ || !failure_.ok()) return absl::CancelledError("the connection has ended");
  return absl::OkStatus();
}

void LocalReads::OnRead(uint64_t tag, HeldChunkOr chunk) {
  MutexLock lock(&mu_);
  if (!ended_ && failure_.ok()) {
    if (const absl::Status answered = AnswerLocked(tag, chunk); !answered.ok()) FailLocked(answered);
  }
  if (chunk.ok()) {
    wanted_[tag] = {.chunk = *std::move(chunk), .given = std::chrono::steady_clock::now()};
  } else {
    wanted_.erase(tag);
  }
  // Under the lock: this may be gone as soon as it is free.
  if (--reading_ == 0) idle_.NotifyAll();
}

absl::Status LocalReads::AnswerLocked(uint64_t tag, const HeldChunkOr& chunk) {
  v1::LocalAnswer answer;
  v1::LocalChunk* const message = answer.mutable_chunk();
  if (chunk.ok()) {
    message->set_frame(EncodeChunkFrame(tag, (*chunk)->info()));
    message->set_offset(
        static_cast<uint64_t>((*chunk)->stored().data() - backend_->store->buffers()->memory().data()));
  } else {
    message->set_frame(EncodeErrorFrame(tag, chunk.status()));
  }
  return socket_->Send(answer.SerializeAsString());
}

void LocalReads::FailLocked(const absl::Status& status) {
  if (!failure_.ok()) return;
  failure_ = status;
  socket_->StopReceiving();
}

std::optional<UnixSocket::TimePoint> LocalReads::ReleaseDue() const {
  MutexLock lock(&mu_);
  if (wanted_.empty()) return std::nullopt;
  UnixSocket::TimePoint oldest = std::chrono::steady_clock::now();
  for (const auto& [tag, wanted] : wanted_) {
    if (wanted.chunk != nullptr) oldest = std::min(oldest, wanted.given);
  }
  return oldest + backend_->stalled_chunk_timeout;
}

absl::Status LocalReads::Check() const {
  {
    MutexLock lock(&mu_);
    if (!failure_.ok()) return failure_;
  }
  const std::optional<UnixSocket::TimePoint> due = ReleaseDue();
  if (!due.has_value() || std::chrono::steady_clock::now() < *due) return absl::OkStatus();
  return absl::DeadlineExceededError(StrCat("a chunk was not released within ",
                                            backend_->stalled_chunk_timeout.count(),
                                            " ms; its memory is others' now: ask for it again"));
}

}  // namespace esker
