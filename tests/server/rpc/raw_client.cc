#include "tests/server/rpc/raw_client.h"

#include <algorithm>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"

namespace esker::testing {

using Factory = grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>;

RawClient::RawClient(const std::shared_ptr<grpc::Channel>& channel, const char* method)
    : method_(method, grpc::internal::RpcMethod::BIDI_STREAMING, channel) {
  context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  stream_.reset(Factory::Create(channel.get(), method_, &context_));
}

RawClient::~RawClient() {
  if (finished_) return;
  context_.TryCancel();
  (void)Finish();
}

bool RawClient::Write(const std::string& message) {
  const grpc::Slice slice(message);
  return stream_->Write(grpc::ByteBuffer(&slice, 1));
}

bool RawClient::WriteChunk(uint64_t tag, const ChunkInfo& info, const std::string& stored,
                           size_t message_bytes) {
  if (!Write(EncodeChunkFrame(tag, info))) return false;
  for (size_t at = 0; at < stored.size(); at += message_bytes) {
    if (!Write(stored.substr(at, message_bytes))) return false;
  }
  return true;
}

std::optional<std::string> RawClient::ReadMessage() {
  grpc::ByteBuffer message;
  if (!stream_->Read(&message)) return std::nullopt;
  std::vector<grpc::Slice> slices;
  ESKER_CHECK(message.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices)
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return text;
}

std::optional<Answer> RawClient::ReadAnswer() {
  const std::optional<std::string> frame = ReadMessage();
  if (!frame) return std::nullopt;
  const absl::StatusOr<FramePrefix> prefix = DecodeFramePrefix(AsBytes(*frame));
  ESKER_CHECK(prefix.ok());
  Answer answer;
  answer.tag = prefix->tag;
  if (prefix->type != FrameType::kChunk) {
    ESKER_CHECK(DecodeStatusFrame(AsBytes(*frame), &answer.status).ok());
    return answer;
  }
  const absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(AsBytes(*frame));
  ESKER_CHECK(info.ok());
  answer.is_chunk = true;
  answer.info = *info;
  while (answer.stored.size() < info->stored_bytes) {
    const std::optional<std::string> body = ReadMessage();
    if (!body) return std::nullopt;
    answer.stored += *body;
  }
  ESKER_CHECK(answer.stored.size() == info->stored_bytes);
  return answer;
}

absl::Status RawClient::Finish() {
  while (ReadMessage()) {
  }
  finished_ = true;
  return FromGrpc(stream_->Finish());
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace esker::testing
