#include "tests/integration/raw_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "format/hash.h"
#include "format/layout.h"
#include "grpcpp/create_channel.h"

namespace esker::testing {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  ESKER_CHECK(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

}  // namespace

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::ByteBuffer RawMessage(std::string_view bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size());
  return grpc::ByteBuffer(&slice, 1);
}

RawClient::RawClient(const std::string& address)
    : channel_([&address] {
        grpc::ChannelArguments arguments;
        arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
        arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
        arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);  // so long may an attempt take
        arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
        arguments.SetMaxReceiveMessageSize(64 << 20);
        return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
      }()),
      coordinator_(v1::Coordinator::NewStub(channel_)),
      store_(v1::Store::NewStub(channel_)) {}

absl::StatusOr<v1::StatusResponse> RawClient::ServerStatus() {
  return Call(&v1::Store::Stub::Status, v1::StatusRequest());
}

absl::StatusOr<uint64_t> RawClient::OpenRun(const std::string& run, const std::string& incarnation) {
  v1::OpenRunRequest request;
  request.set_run(run);
  request.set_incarnation(incarnation);
  ESKER_ASSIGN_OR_RETURN(const v1::OpenRunResponse response, Call(&v1::Coordinator::Stub::OpenRun, request));
  return response.attempt();
}

absl::StatusOr<v1::ListCheckpointsResponse> RawClient::List(const std::string& run, bool all) {
  v1::ListCheckpointsRequest request;
  request.set_run(run);
  request.set_all(all);
  return Call(&v1::Coordinator::Stub::ListCheckpoints, request);
}

absl::Status RawClient::Delete(const std::string& run, uint64_t step) {
  v1::DeleteCheckpointRequest request;
  request.set_run(run);
  request.set_step(step);
  return Call(&v1::Coordinator::Stub::DeleteCheckpoint, request).status();
}

absl::Status RawClient::Pin(const std::string& run, uint64_t step, bool pinned) {
  v1::PinCheckpointRequest request;
  request.set_run(run);
  request.set_step(step);
  request.set_pinned(pinned);
  return Call(&v1::Coordinator::Stub::PinCheckpoint, request).status();
}

absl::StatusOr<v1::CollectGarbageResponse> RawClient::CollectGarbage(const v1::RetentionPolicy* policy,
                                                                     const std::string& run) {
  v1::CollectGarbageRequest request;
  request.set_run(run);
  if (policy != nullptr) *request.mutable_policy() = *policy;
  return Call(&v1::Coordinator::Stub::CollectGarbage, request);
}

std::unique_ptr<RawClient::RawStream> RawClient::OpenStream(const std::string& call,
                                                            grpc::ClientContext* context) {
  const std::string name = "/esker.v1.Store/" + call;
  const grpc::internal::RpcMethod method(name.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING, channel_);
  return std::unique_ptr<RawStream>(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel_.get(),
                                                                                            method, context));
}

RawRank::RawRank(RawClient* client, std::string run, uint64_t attempt, uint32_t rank, uint32_t world_size)
    : client_(client), world_size_(world_size) {
  context_.set_run(std::move(run));
  context_.set_attempt(attempt);
  context_.set_rank(rank);
}

absl::Status RawRank::Begin(uint64_t step, std::string content) {
  content_ = std::move(content);
  context_.set_step(step);
  v1::BeginSaveRequest request;
  request.set_run(context_.run());
  request.set_attempt(context_.attempt());
  request.set_step(step);
  request.set_rank(context_.rank());
  request.set_world_size(world_size_);
  request.set_raw_bytes(content_.size());
  ESKER_ASSIGN_OR_RETURN(const v1::BeginSaveResponse begun,
                         client_->Call(&v1::Coordinator::Stub::BeginSave, request));
  context_.set_save_id(begun.save_id());

  const std::vector<uint64_t> shape = {content_.size()};
  const ShardSpec shard{absl::StrCat("rank.", context_.rank()), DType::kU8, shape, Box{{0}, shape}};
  ESKER_ASSIGN_OR_RETURN(const v1::Layout layout, BuildLayout({shard}, {}, kChunkBytes));
  layout_envelope_ = EncodeEnvelope(EnvelopeKind::kLayout, layout);
  v1::Part part;
  part.set_run(context_.run());
  part.set_step(step);
  part.set_attempt(context_.attempt());
  part.set_save_id(context_.save_id());
  part.set_rank(context_.rank());
  part.set_layout_digest(std::string(HashOf(AsBytes(layout_envelope_)).AsText()));
  part.set_raw_bytes(content_.size());
  chunks_.clear();
  uint64_t offset = 0;
  for (const uint64_t bytes : layout.chunk_raw_bytes()) {
    const ByteView raw = AsBytes(content_).subspan(offset, bytes);
    chunks_.push_back({HashOf(raw), CodecId::kRaw, DType::kU8, bytes, bytes, Crc32c(raw)});
    part.mutable_chunk_hashes()->append(chunks_.back().hash.AsText());
    offset += bytes;
  }
  part_envelope_ = EncodeEnvelope(EnvelopeKind::kPart, part);
  return absl::OkStatus();
}

absl::Status RawRank::Upload() {
  v1::OfferChunksRequest request;
  *request.mutable_save() = context_;
  for (const ChunkInfo& chunk : chunks_) request.mutable_hashes()->append(chunk.hash.AsText());
  ESKER_ASSIGN_OR_RETURN(const v1::OfferChunksResponse response,
                         client_->Call(&v1::Store::Stub::OfferChunks, request));
  if (response.missing().size() != chunks_.size())
    return absl::InternalError("OfferChunks: not one answer a hash");
  if (response.missing().find('\1') == std::string::npos) return absl::OkStatus();
  return SendChunks(response.missing());
}

std::string_view RawRank::ChunkBytes(size_t index) const {
  return std::string_view(content_).substr(index * kChunkBytes, chunks_[index].raw_bytes);
}

absl::Status RawRank::SendChunks(const std::string& missing) {
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  const std::unique_ptr<RawClient::RawStream> stream = client_->OpenStream("PutChunks", &rpc);
  bool writing = stream->Write(RawMessage(EncodeHello(context_.SerializeAsString())));
  for (size_t i = 0; i < chunks_.size(); ++i) {
    if (missing[i] == 0) continue;
    writing = writing && stream->Write(RawMessage(EncodeChunkFrame(i, chunks_[i]))) &&
              stream->Write(RawMessage(ChunkBytes(i)));
    grpc::ByteBuffer answer;
    if (!writing || !stream->Read(&answer)) return FromGrpcStatus(stream->Finish());
    const std::string frame = Flatten(answer);
    absl::Status acknowledged;
    ESKER_RETURN_IF_ERROR(DecodeStatusFrame(AsBytes(frame), &acknowledged));
    ESKER_RETURN_IF_ERROR(acknowledged);
  }
  stream->WritesDone();
  return FromGrpcStatus(stream->Finish());
}

absl::StatusOr<v1::SealPartResponse> RawRank::Seal() {
  v1::SealPartRequest request;
  *request.mutable_save() = context_;
  request.set_part_envelope(part_envelope_);
  request.set_layout_envelope(layout_envelope_);
  ESKER_ASSIGN_OR_RETURN(sealed_, client_->Call(&v1::Store::Stub::SealPart, request));
  return sealed_;
}

absl::StatusOr<v1::SaveStatus> RawRank::Report() {
  v1::ReportPartRequest request;
  *request.mutable_save() = context_;
  *request.mutable_part() = sealed_.entry();
  request.mutable_part()->add_servers(0);
  *request.add_servers() = sealed_.server();
  ESKER_ASSIGN_OR_RETURN(const v1::ReportPartResponse response,
                         client_->Call(&v1::Coordinator::Stub::ReportPart, request));
  return response.status();
}

absl::StatusOr<v1::SaveStatus> RawRank::Await(uint32_t timeout_ms) {
  v1::WaitSaveRequest request;
  *request.mutable_save() = context_;
  request.set_timeout_ms(timeout_ms);
  return client_->Call(&v1::Coordinator::Stub::WaitSave, request,
                       std::chrono::milliseconds(timeout_ms) + std::chrono::seconds(20));
}

absl::Status RawRank::Save(uint64_t step, std::string content) {
  ESKER_RETURN_IF_ERROR(Begin(step, std::move(content)));
  ESKER_RETURN_IF_ERROR(Upload());
  ESKER_ASSIGN_OR_RETURN(const v1::SealPartResponse sealed, Seal());
  if (!sealed.missing_hashes().empty()) return absl::UnavailableError("SealPart: chunks are missing");
  return Report().status();
}

}  // namespace esker::testing
