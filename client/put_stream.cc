#include "client/put_stream.h"

#include <algorithm>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"

namespace esker {

PutStream::PutStream(std::shared_ptr<grpc::Channel> channel, const std::string& server,
                     const v1::SaveContext& save, uint64_t body_bytes, const Deadline& deadline)
    : server_(server),
      body_bytes_(body_bytes),
      deadline_(deadline),
      hello_(EncodeHello(save.SerializeAsString())),
      stream_(std::move(channel), server, "PutChunks", deadline) {}

absl::Status PutStream::Send(uint64_t tag, const ChunkInfo& info, ByteView stored,
                             const std::shared_ptr<const void>& keep) {
  if (!greeted_) ESKER_RETURN_IF_ERROR(stream_.Write(CopyOf(hello_)));
  greeted_ = true;
  ESKER_RETURN_IF_ERROR(stream_.Write(CopyOf(EncodeChunkFrame(tag, info))));
  unacknowledged_[tag] = info.stored_bytes;
  unacknowledged_bytes_ += info.stored_bytes;
  for (uint64_t at = 0; at < stored.size(); at += body_bytes_) {
    const ByteView body = stored.subspan(at, std::min<uint64_t>(body_bytes_, stored.size() - at));
    ESKER_RETURN_IF_ERROR(stream_.Write(ReferTo(body, keep)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<PutAck>> PutStream::TakeAck(bool wait) {
  if (!wait && !stream_.HasMessage()) return std::nullopt;
  ESKER_ASSIGN_OR_RETURN(const grpc::ByteBuffer message, stream_.Read(deadline_));
  ESKER_ASSIGN_OR_RETURN(const std::string frame, ToString(message, kMaxControlFrameBytes));
  ESKER_ASSIGN_OR_RETURN(const FramePrefix prefix, DecodeFramePrefix(AsBytes(frame)));
  PutAck ack;
  ack.tag = prefix.tag;
  ESKER_RETURN_IF_ERROR(DecodeStatusFrame(AsBytes(frame), &ack.status));
  const auto sent = unacknowledged_.find(ack.tag);
  if (prefix.type != FrameType::kAck || sent == unacknowledged_.end()) {
    return absl::InternalError(StrCat("server ", server_, ": PutChunks: answered to chunk ", ack.tag,
                                      ", which was not sent or was answered before"));
  }
  unacknowledged_bytes_ -= sent->second;
  unacknowledged_.erase(sent);
  return ack;
}

}  // namespace esker
