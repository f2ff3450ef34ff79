#include "server/rpc/store_service.h"

#include <sys/resource.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "format/base/text.h"
#include "format/envelope.h"
#include "server/rpc/frames.h"
#include "server/rpc/get_stream.h"
#include "server/rpc/put_stream.h"
#include "server/rpc/verify_call.h"

namespace esker {
namespace {

// Both checked against the same save, so that a part can't be sealed under another one's name.
absl::Status CheckPartIs(const v1::Part& part, const v1::SaveContext& save) {
  if (part.run() == save.run() && part.step() == save.step() && part.attempt() == save.attempt() &&
      part.save_id() == save.save_id() && part.rank() == save.rank()) {
    return absl::OkStatus();
  }
  const auto describe = [](const auto& of) {
    return StrCat(of.run(), "@", of.step(), " attempt ", of.attempt(), " save ", absl::Hex(of.save_id()),
                  " rank ", of.rank());
  };
  return absl::InvalidArgumentError(
      StrCat("SealPart: the call is for ", describe(save), ", but the part says ", describe(part)));
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

void AddProcessFigures(v1::StatusResponse* response) {
  rusage usage = {};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return;
  response->set_peak_rss_bytes(static_cast<uint64_t>(usage.ru_maxrss) * 1024);
  response->set_cpu_seconds(Seconds(usage.ru_utime) + Seconds(usage.ru_stime));
}

void AddStoreFigures(const StoreStats& stats, v1::StatusResponse* response) {
  response->set_disk_total_bytes(stats.disk.total_bytes);
  response->set_disk_available_bytes(stats.disk.available_bytes);
  response->set_reserved_bytes(stats.reserved_bytes);
  response->set_segments(stats.segments);
  response->set_segments_free(stats.free_segments);
  response->set_segment_bytes(stats.segment_bytes);
  response->set_live_bytes(stats.live_bytes);
  response->set_allocated_bytes(stats.allocated_bytes);
  response->set_chunks(stats.chunks);
  response->set_parts(stats.parts);
  response->set_layouts(stats.layouts);
  response->set_open_saves(stats.open_saves);
  response->set_open_reads(stats.open_reads);
  response->set_chunks_read(stats.chunks_read);
  response->set_chunk_reads_joined(stats.chunk_reads_joined);
  for (const std::string& segment : stats.failed_segments) response->add_failed_segments(segment);
}

}  // namespace

absl::StatusOr<v1::OfferChunksResponse> StoreService::DoOfferChunks(const v1::OfferChunksRequest& request) {
  const std::string& bytes = request.hashes();
  if (bytes.size() % sizeof(Hash128) != 0 || bytes.size() > kMaxOfferedHashes * sizeof(Hash128)) {
    return absl::InvalidArgumentError(StrCat("OfferChunks: expected at most ", kMaxOfferedHashes,
                                             " hashes of 16 bytes, found ", bytes.size(), " bytes"));
  }
  ESKER_RETURN_IF_ERROR(backend_->coordinator->CheckSaveOpen(request.save()));
  std::vector<Hash128> hashes(bytes.size() / sizeof(Hash128));
  for (size_t i = 0; i < hashes.size(); ++i) {
    std::memcpy(hashes[i].bytes.data(), bytes.data() + i * sizeof(Hash128), sizeof(Hash128));
  }
  ESKER_ASSIGN_OR_RETURN(const std::vector<bool> missing,
                         backend_->store->Offer(ToPartRef(request.save()), hashes));
  v1::OfferChunksResponse response;
  for (const bool send : missing) response.mutable_missing()->push_back(send ? '\1' : '\0');
  return response;
}

absl::StatusOr<v1::SealPartResponse> StoreService::DoSealPart(const v1::SealPartRequest& request) {
  const absl::StatusOr<v1::Part> part =
      DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, request.part_envelope());
  if (!part.ok()) {
    // What a client sent is a bad request, not lost data.
    return absl::InvalidArgumentError(StrCat("SealPart: part_envelope: ", part.status().message()));
  }
  ESKER_RETURN_IF_ERROR(CheckPartIs(*part, request.save()));
  ESKER_RETURN_IF_ERROR(backend_->coordinator->CheckSaveOpen(request.save()));
  ESKER_ASSIGN_OR_RETURN(
      SealResult sealed,
      backend_->store->Seal(ToPartRef(request.save()), request.part_envelope(), request.layout_envelope()));
  v1::SealPartResponse response;
  for (const Hash128& hash : sealed.missing) response.mutable_missing_hashes()->append(hash.AsText());
  if (sealed.missing.empty()) *response.mutable_entry() = std::move(sealed.entry);
  response.mutable_server()->set_id(backend_->store->id());
  response.mutable_server()->set_address(backend_->AddressForClients());
  return response;
}

absl::StatusOr<v1::OpenReadResponse> StoreService::DoOpenRead(const v1::OpenReadRequest& request) {
  const SaveRef save = {.run = request.run(), .step = request.step(), .save_id = request.save_id()};
  // In this order: garbage collection looks into the catalog first and for readers then, so one of the two
  // sees the other.
  const uint64_t lease_id = backend_->store->OpenRead(save);
  if (const absl::Status committed = backend_->coordinator->CheckCommitted(save); !committed.ok()) {
    backend_->store->CloseRead(lease_id);
    return committed;
  }
  v1::OpenReadResponse response;
  response.set_lease_id(lease_id);
  response.set_ttl_ms(static_cast<uint32_t>(backend_->options.read_lease_ttl_ms));
  return response;
}

absl::StatusOr<v1::RenewReadResponse> StoreService::DoRenewRead(const v1::RenewReadRequest& request) {
  ESKER_RETURN_IF_ERROR(backend_->store->RenewRead(request.lease_id()));
  return v1::RenewReadResponse();
}

absl::StatusOr<v1::CloseReadResponse> StoreService::DoCloseRead(const v1::CloseReadRequest& request) {
  backend_->store->CloseRead(request.lease_id());
  return v1::CloseReadResponse();
}

absl::StatusOr<v1::GetPartsResponse> StoreService::DoGetParts(const v1::GetPartsRequest& request) {
  if (request.ranks_size() == 0 || request.ranks_size() > kMaxRanksPerRequest) {
    return absl::InvalidArgumentError(
        StrCat("GetParts: expected 1 to ", kMaxRanksPerRequest, " ranks, found ", request.ranks_size()));
  }
  const SaveRef save = {.run = request.run(), .step = request.step(), .save_id = request.save_id()};
  v1::GetPartsResponse response;
  uint64_t bytes = 0;
  for (const uint32_t rank : request.ranks()) {
    ESKER_ASSIGN_OR_RETURN(StoredPart part, backend_->store->GetPart(save, rank));
    bytes += part.envelope.size();
    if (bytes > kAnswerBytes && response.part_envelopes_size() > 0) break;
    response.add_part_envelopes(std::move(part.envelope));
  }
  return response;
}

absl::StatusOr<v1::GetLayoutsResponse> StoreService::DoGetLayouts(const v1::GetLayoutsRequest& request) {
  if (request.digests_size() == 0 || request.digests_size() > kMaxLayoutsPerRequest) {
    return absl::InvalidArgumentError(StrCat("GetLayouts: expected 1 to ", kMaxLayoutsPerRequest,
                                             " digests, found ", request.digests_size()));
  }
  v1::GetLayoutsResponse response;
  uint64_t bytes = 0;
  for (const std::string& text : request.digests()) {
    ESKER_ASSIGN_OR_RETURN(const Hash128 digest, HashFromBytes(text, "layout digest"));
    ESKER_ASSIGN_OR_RETURN(std::string envelope, backend_->store->GetLayout(digest));
    bytes += envelope.size();
    if (bytes > kAnswerBytes && response.layout_envelopes_size() > 0) break;
    response.add_layout_envelopes(std::move(envelope));
  }
  return response;
}

absl::StatusOr<v1::LocalSocketResponse> StoreService::DoGetLocalSocket(
    const v1::LocalSocketRequest& /*request*/) {
  const LocalSocket& socket = backend_->options.local_socket;
  v1::LocalSocketResponse response;
  response.set_path(socket.path);
  response.set_token(socket.token);
  response.set_reason(socket.reason);
  return response;
}

absl::StatusOr<v1::StatusResponse> StoreService::DoStatus(const v1::StatusRequest& /*request*/) {
  ESKER_ASSIGN_OR_RETURN(const StoreStats stats, backend_->store->Stats());
  v1::StatusResponse response;
  response.set_server_id(backend_->store->id());
  response.set_version(backend_->options.version);
  response.set_data_directory(backend_->options.data_directory);
  response.set_disk_engine(backend_->store->DescribeDisk());
  response.set_uptime_ms(static_cast<uint64_t>(backend_->watch.NowMillis() - backend_->started_ms));
  AddStoreFigures(stats, &response);
  AddProcessFigures(&response);
  return response;
}

StoreService::RawReactor* StoreService::PutChunks(Context* context) {
  return new PutStream(backend_, context);
}

StoreService::RawReactor* StoreService::GetChunks(Context* context) {
  return new GetStream(backend_, context);
}

grpc::ServerWriteReactor<v1::VerifyPartsProgress>* StoreService::VerifyParts(
    Context* context, const v1::VerifyPartsRequest* request) {
  return new VerifyCall(backend_, context, *request);
}

}  // namespace esker
