#include "tests/client/fake_server.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/delta.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "format/proto/service.grpc.pb.h"
#include "google/protobuf/descriptor.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/method_handler.h"

namespace esker::testing {
namespace {

using RawStream = grpc::ServerReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(MessageOf(status)));
}

grpc::ByteBuffer ToBuffer(std::string_view text) {
  const grpc::Slice slice(text.data(), text.size());
  return grpc::ByteBuffer(&slice, 1);
}

std::string ToText(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (buffer.Length() == 0) return text;
  ESKER_CHECK(buffer.Dump(&slices).ok());
  for (const grpc::Slice& slice : slices)
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return text;
}

struct StoredChunk {
  ChunkInfo info;
  std::string stored;
};

struct Save {
  uint64_t attempt = 0;
  uint64_t save_id = 0;
  uint32_t world_size = 0;
  v1::SaveStatus::State state = v1::SaveStatus::SAVING;
  std::string reason;
  std::map<uint32_t, v1::PartEntry> reports;  // volatile
};

struct Checkpoint {
  v1::CheckpointRecord record;
  std::string manifest_envelope;
  std::map<uint32_t, std::string> parts;  // envelopes
};

}  // namespace

class FakeServer::State {
 public:
  class CoordinatorService;
  class StoreService;
  State();
  ~State();

  // Runs one call: counts it, stalls, hooks, and the call itself, which has no effect if the server has
  // crashed since `generation`.
  template <typename Body>
  absl::Status Run(Rpc rpc, Body body) {
    return Run(rpc, Generation(), body);
  }
  template <typename Body>
  absl::Status Run(Rpc rpc, uint64_t generation, Body body) {
    Hook hook;
    {
      MutexLock lock(&mu_);
      ++calls_[rpc];
      changed_.NotifyAll();
      while (stalled_.contains(rpc) && !stopping_) changed_.Wait(&mu_);
      hook = hook_;
    }
    absl::Status status = hook ? hook(rpc, When::kBefore) : absl::OkStatus();
    if (!status.ok()) return status;
    {
      MutexLock lock(&mu_);
      if (generation != generation_ || stopping_) return absl::UnavailableError("crashed");
      status = body();
    }
    if (status.ok() && hook) status = hook(rpc, When::kAfter);
    MutexLock lock(&mu_);
    if (generation != generation_ || stopping_) return absl::UnavailableError("crashed");
    return status;
  }

  uint64_t Generation() {
    MutexLock lock(&mu_);
    return generation_;
  }

  void ForgetVolatile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    ++generation_;
    pending_.clear();
    leases_.clear();
    for (auto& [key, save] : saves_) save.reports.clear();
    changed_.NotifyAll();
  }

  absl::Status CheckFence(const std::string& run, uint64_t attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto entry = runs_.find(run);
    if (entry == runs_.end()) return absl::NotFoundError(StrCat("run ", run, " does not exist"));
    if (attempt != entry->second.size()) {
      return absl::PermissionDeniedError(StrCat("attempt ", attempt, " of run ", run, " is over: attempt ",
                                                entry->second.size(), " has begun"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Save*> FindSave(const v1::SaveContext& context) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto entry = saves_.find({context.run(), context.step()});
    if (entry == saves_.end() || entry->second.save_id != context.save_id()) {
      return absl::NotFoundError(StrCat("no save of step ", context.step(), " with this id"));
    }
    return &entry->second;
  }

  absl::Status CheckOpen(const v1::SaveContext& context) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    ESKER_RETURN_IF_ERROR(CheckFence(context.run(), context.attempt()));
    ESKER_ASSIGN_OR_RETURN(const Save* save, FindSave(context));
    if (save->state == v1::SaveStatus::ABORTED) return absl::AbortedError(save->reason);
    return absl::OkStatus();
  }

  v1::SaveStatus StatusOf(const Save& save, uint32_t rank) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::SaveStatus status;
    status.set_state(save.state);
    status.set_world_size(save.world_size);
    status.set_reported(static_cast<uint32_t>(save.reports.size()));
    status.set_this_rank_reported(save.reports.contains(rank));
    status.set_reason(save.reason);
    for (uint32_t r = 0; r < save.world_size && status.missing_ranks_size() < 16; ++r) {
      if (!save.reports.contains(r)) status.add_missing_ranks(r);
    }
    return status;
  }

  void Commit(const std::string& run, uint64_t step, Save* save) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::Manifest manifest;
    manifest.set_run(run);
    manifest.set_step(step);
    manifest.set_attempt(save->attempt);
    manifest.set_save_id(save->save_id);
    manifest.set_world_size(save->world_size);
    for (auto& [rank, entry] : save->reports) {
      std::string& envelope = sealed_.at({save->save_id, rank});
      if (part_tamper_) {
        v1::Part part = *DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, envelope);
        part_tamper_(&part);
        envelope = EncodeEnvelope(EnvelopeKind::kPart, part);
        entry.set_part_digest(std::string(HashOf(AsBytes(envelope)).AsText()));
      }
      *manifest.add_parts() = entry;
    }
    Checkpoint checkpoint;
    checkpoint.manifest_envelope = EncodeEnvelope(EnvelopeKind::kManifest, manifest);
    v1::CheckpointRecord& record = checkpoint.record;
    record.set_run(run);
    record.set_step(step);
    record.set_attempt(save->attempt);
    record.set_save_id(save->save_id);
    record.set_world_size(save->world_size);
    record.set_state(v1::CheckpointRecord::COMMITTED);
    record.set_manifest_digest(std::string(HashOf(AsBytes(checkpoint.manifest_envelope)).AsText()));
    for (const auto& [rank, part] : save->reports) {
      checkpoint.parts[rank] = sealed_.at({save->save_id, rank});
      record.set_raw_bytes(record.raw_bytes() + part.raw_bytes());
    }
    checkpoints_[{run, step}] = checkpoint;
    save->state = v1::SaveStatus::COMMITTED;
    changed_.NotifyAll();
  }

  absl::StatusOr<const Checkpoint*> FindCheckpoint(const std::string& run, bool latest, uint64_t step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const Checkpoint* found = nullptr;
    for (const auto& [key, checkpoint] : checkpoints_) {
      if (key.first == run && (latest || key.second == step)) found = &checkpoint;
    }
    if (found == nullptr) return absl::NotFoundError(StrCat("run ", run, " has no such checkpoint"));
    return found;
  }

  bool Holds(const Hash128& hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pending_.contains(hash) || durable_.contains(hash);
  }

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  Hook hook_ ABSL_GUARDED_BY(mu_);
  int puts_per_stream_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<Rpc> stalled_ ABSL_GUARDED_BY(mu_);
  std::function<void(Outgoing*)> tamper_ ABSL_GUARDED_BY(mu_);
  std::function<void(Rpc, std::string*)> envelope_tamper_ ABSL_GUARDED_BY(mu_);
  std::function<void(v1::Part*)> part_tamper_ ABSL_GUARDED_BY(mu_);
  std::map<Rpc, uint64_t> calls_ ABSL_GUARDED_BY(mu_);
  uint64_t damaged_puts_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t layouts_received_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Hash128> put_ ABSL_GUARDED_BY(mu_);
  std::vector<Hash128> wanted_ ABSL_GUARDED_BY(mu_);

  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1000;
  std::map<std::string, std::vector<std::string>> runs_
      ABSL_GUARDED_BY(mu_);  // incarnations; attempt = count
  std::map<std::pair<std::string, uint64_t>, Save> saves_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<std::string, uint64_t>, Checkpoint> checkpoints_ ABSL_GUARDED_BY(mu_);
  std::map<Hash128, StoredChunk> pending_ ABSL_GUARDED_BY(mu_);  // not sealed
  std::map<Hash128, StoredChunk> durable_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<uint64_t, uint32_t>, std::string> sealed_ ABSL_GUARDED_BY(mu_);  // by save id and rank
  std::map<Hash128, std::string> layouts_ ABSL_GUARDED_BY(mu_);
  std::set<uint64_t> leases_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<CoordinatorService> coordinator_;
  std::unique_ptr<StoreService> store_;
};

class FakeServer::State::CoordinatorService final : public v1::Coordinator::Service {
 public:
  explicit CoordinatorService(State* state) : s_(state) {}

  grpc::Status OpenRun(grpc::ServerContext*, const v1::OpenRunRequest* request,
                       v1::OpenRunResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kOpenRun, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      std::vector<std::string>& known = s_->runs_[request->run()];
      const auto at = std::find(known.begin(), known.end(), request->incarnation());
      if (at == known.end()) {
        known.push_back(request->incarnation());
      } else if (at + 1 != known.end()) {
        return absl::PermissionDeniedError("a newer incarnation has opened the run");
      }
      response->set_attempt(known.size());
      return absl::OkStatus();
    }));
  }

  grpc::Status BeginSave(grpc::ServerContext*, const v1::BeginSaveRequest* request,
                         v1::BeginSaveResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kBeginSave, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_RETURN_IF_ERROR(s_->CheckFence(request->run(), request->attempt()));
      Save& save = s_->saves_[{request->run(), request->step()}];
      if (save.attempt == request->attempt() && save.state == v1::SaveStatus::COMMITTED) {
        return absl::AlreadyExistsError(StrCat("step ", request->step(), " is committed"));
      }
      if (save.attempt != request->attempt() || save.state == v1::SaveStatus::ABORTED) {
        save = Save();
        save.attempt = request->attempt();
        save.save_id = s_->next_id_++;
        save.world_size = request->world_size();
      }
      response->set_save_id(save.save_id);
      return absl::OkStatus();
    }));
  }

  grpc::Status ReportPart(grpc::ServerContext*, const v1::ReportPartRequest* request,
                          v1::ReportPartResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kReportPart, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_RETURN_IF_ERROR(s_->CheckFence(request->save().run(), request->save().attempt()));
      ESKER_ASSIGN_OR_RETURN(Save * save, s_->FindSave(request->save()));
      if (save->state == v1::SaveStatus::SAVING) {
        if (request->servers_size() != 1 || request->part().servers_size() != 1) {
          return absl::InvalidArgumentError("expected one server");
        }
        save->reports[request->save().rank()] = request->part();
        if (save->reports.size() == save->world_size) {
          s_->Commit(request->save().run(), request->save().step(), save);
        }
      }
      *response->mutable_status() = s_->StatusOf(*save, request->save().rank());
      return absl::OkStatus();
    }));
  }

  grpc::Status WaitSave(grpc::ServerContext* context, const v1::WaitSaveRequest* request,
                        v1::SaveStatus* response) override {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(request->timeout_ms());
    const uint64_t generation = s_->Generation();
    return ToGrpc(s_->Run(Rpc::kWaitSave, generation, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      while (true) {
        ESKER_ASSIGN_OR_RETURN(const Save* save, s_->FindSave(request->save()));
        *response = s_->StatusOf(*save, request->save().rank());
        // A rank that has not reported is told so at once.
        if (save->state != v1::SaveStatus::SAVING || !response->this_rank_reported() ||
            std::chrono::steady_clock::now() >= until) {
          return absl::OkStatus();
        }
        if (s_->stopping_ || s_->generation_ != generation || context->IsCancelled()) {
          return absl::UnavailableError("crashed");
        }
        s_->changed_.WaitUntil(
            &s_->mu_, std::min(until, std::chrono::steady_clock::now() + std::chrono::milliseconds(50)));
      }
    }));
  }

  grpc::Status AbortSave(grpc::ServerContext*, const v1::AbortSaveRequest* request,
                         v1::AbortSaveResponse*) override {
    return ToGrpc(s_->Run(Rpc::kAbortSave, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_ASSIGN_OR_RETURN(Save * save, s_->FindSave(request->save()));
      if (save->state == v1::SaveStatus::COMMITTED) return absl::AlreadyExistsError("the save is committed");
      save->state = v1::SaveStatus::ABORTED;
      save->reason = request->reason();
      s_->changed_.NotifyAll();
      return absl::OkStatus();
    }));
  }

  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::ListCheckpointsRequest* request,
                               v1::ListCheckpointsResponse* response) override {
    MutexLock lock(&s_->mu_);
    if (!s_->runs_.contains(request->run())) return ToGrpc(absl::NotFoundError("no such run"));
    for (const auto& [key, checkpoint] : s_->checkpoints_) {
      if (key.first == request->run()) *response->add_checkpoints() = checkpoint.record;
    }
    return grpc::Status::OK;
  }

  grpc::Status GetCheckpoint(grpc::ServerContext*, const v1::GetCheckpointRequest* request,
                             v1::GetCheckpointResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kGetCheckpoint, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_ASSIGN_OR_RETURN(const Checkpoint* checkpoint,
                             s_->FindCheckpoint(request->run(), request->latest(), request->step()));
      *response->mutable_record() = checkpoint->record;
      if (request->ranks().empty()) {
        response->set_manifest_envelope(checkpoint->manifest_envelope);
        if (s_->envelope_tamper_)
          s_->envelope_tamper_(Rpc::kGetCheckpoint, response->mutable_manifest_envelope());
        return absl::OkStatus();
      }
      const auto manifest =
          DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, checkpoint->manifest_envelope);
      for (const v1::PartEntry& part : manifest->parts()) {
        if (std::count(request->ranks().begin(), request->ranks().end(), part.rank()) > 0)
          *response->add_parts() = part;
      }
      return absl::OkStatus();
    }));
  }

 private:
  State* const s_;
};

class FakeServer::State::StoreService final : public v1::Store::Service {
 public:
  explicit StoreService(State* state) : s_(state) {
    ServeRaw("PutChunks", &StoreService::PutRaw);
    ServeRaw("GetChunks", &StoreService::GetRaw);
  }

  grpc::Status OfferChunks(grpc::ServerContext*, const v1::OfferChunksRequest* request,
                           v1::OfferChunksResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kOfferChunks, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_RETURN_IF_ERROR(s_->CheckOpen(request->save()));
      for (size_t at = 0; at < request->hashes().size(); at += 16) {
        const auto hash = HashFromBytes(std::string_view(request->hashes()).substr(at, 16), "offer");
        if (!hash.ok()) return hash.status();
        response->mutable_missing()->push_back(s_->Holds(*hash) ? '\0' : '\1');
      }
      return absl::OkStatus();
    }));
  }

  grpc::Status SealPart(grpc::ServerContext*, const v1::SealPartRequest* request,
                        v1::SealPartResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kSealPart, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_RETURN_IF_ERROR(s_->CheckOpen(request->save()));
      ESKER_ASSIGN_OR_RETURN(const v1::Part part,
                             DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, request->part_envelope()));
      ESKER_ASSIGN_OR_RETURN(const Hash128 layout, HashFromBytes(part.layout_digest(), "layout"));
      if (!request->layout_envelope().empty()) {
        s_->layouts_[layout] = request->layout_envelope();
        ++s_->layouts_received_;
      }
      if (!s_->layouts_.contains(layout)) return absl::FailedPreconditionError("send the layout");
      std::vector<Hash128> hashes;
      for (size_t at = 0; at < part.chunk_hashes().size(); at += 16) {
        hashes.push_back(*HashFromBytes(std::string_view(part.chunk_hashes()).substr(at, 16), "chunk"));
        if (!s_->Holds(hashes.back())) response->mutable_missing_hashes()->append(hashes.back().AsText());
      }
      if (!response->missing_hashes().empty()) return absl::OkStatus();
      for (const Hash128& hash : hashes) {
        if (auto chunk = s_->pending_.extract(hash); !chunk.empty()) s_->durable_.insert(std::move(chunk));
      }
      s_->sealed_[{part.save_id(), part.rank()}] = request->part_envelope();
      v1::PartEntry* entry = response->mutable_entry();
      entry->set_rank(part.rank());
      entry->set_part_digest(std::string(HashOf(AsBytes(request->part_envelope())).AsText()));
      entry->set_layout_digest(part.layout_digest());
      entry->set_raw_bytes(part.raw_bytes());
      response->mutable_server()->set_id("fake");
      return absl::OkStatus();
    }));
  }

  grpc::Status OpenRead(grpc::ServerContext*, const v1::OpenReadRequest* request,
                        v1::OpenReadResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kOpenRead, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      ESKER_ASSIGN_OR_RETURN(const Checkpoint* checkpoint,
                             s_->FindCheckpoint(request->run(), false, request->step()));
      if (checkpoint->record.save_id() != request->save_id()) return absl::NotFoundError("saved again");
      response->set_lease_id(s_->next_id_++);
      response->set_ttl_ms(300);
      s_->leases_.insert(response->lease_id());
      return absl::OkStatus();
    }));
  }

  grpc::Status RenewRead(grpc::ServerContext*, const v1::RenewReadRequest* request,
                         v1::RenewReadResponse*) override {
    return ToGrpc(s_->Run(Rpc::kRenewRead, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      return s_->leases_.contains(request->lease_id()) ? absl::OkStatus()
                                                       : absl::NotFoundError("no such lease");
    }));
  }

  grpc::Status CloseRead(grpc::ServerContext*, const v1::CloseReadRequest* request,
                         v1::CloseReadResponse*) override {
    MutexLock lock(&s_->mu_);
    s_->leases_.erase(request->lease_id());
    return grpc::Status::OK;
  }

  grpc::Status GetParts(grpc::ServerContext*, const v1::GetPartsRequest* request,
                        v1::GetPartsResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kGetParts, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      // Two a message: so every larger checkpoint tests that the rest is asked for.
      for (int i = 0; i < std::min(request->ranks_size(), 2); ++i) {
        const auto part = s_->sealed_.find({request->save_id(), request->ranks(i)});
        if (part == s_->sealed_.end()) return absl::NotFoundError("no such part");
        response->add_part_envelopes(part->second);
        if (s_->envelope_tamper_) s_->envelope_tamper_(Rpc::kGetParts, response->mutable_part_envelopes(i));
      }
      return absl::OkStatus();
    }));
  }

  grpc::Status GetLayouts(grpc::ServerContext*, const v1::GetLayoutsRequest* request,
                          v1::GetLayoutsResponse* response) override {
    return ToGrpc(s_->Run(Rpc::kGetLayouts, [&]() -> absl::Status {
      s_->mu_.AssertHeld();
      for (int i = 0; i < std::min(request->digests_size(), 2); ++i) {
        const auto layout = s_->layouts_.find(*HashFromBytes(request->digests(i), "layout"));
        if (layout == s_->layouts_.end()) return absl::NotFoundError("no such layout");
        response->add_layout_envelopes(layout->second);
        if (s_->envelope_tamper_)
          s_->envelope_tamper_(Rpc::kGetLayouts, response->mutable_layout_envelopes(i));
      }
      return absl::OkStatus();
    }));
  }

  grpc::Status Status(grpc::ServerContext*, const v1::StatusRequest*, v1::StatusResponse* response) override {
    response->set_server_id("fake");
    return grpc::Status::OK;
  }

  grpc::Status VerifyParts(grpc::ServerContext*, const v1::VerifyPartsRequest*,
                           grpc::ServerWriter<v1::VerifyPartsProgress>* stream) override {
    v1::VerifyPartsProgress progress;
    progress.set_chunks_total(3);
    for (uint64_t i = 1; i <= 3; ++i) {
      progress.set_chunks_done(i);
      if (!stream->Write(progress)) break;
    }
    return grpc::Status::OK;
  }

 private:
  using RawHandler = grpc::Status (StoreService::*)(grpc::ServerContext*, RawStream*);

  // Serves a method with byte buffers in place of messages.
  void ServeRaw(const std::string& method, RawHandler handler) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindMethodByName("esker.v1.Store." + method);
    ESKER_CHECK(descriptor != nullptr);
    MarkMethodStreamed(
        descriptor->index(),
        new grpc::internal::BidiStreamingHandler<StoreService, grpc::ByteBuffer, grpc::ByteBuffer>(
            [handler](StoreService* self, grpc::ServerContext* context, RawStream* stream) {
              return (self->*handler)(context, stream);
            },
            this));
  }

  grpc::Status PutRaw(grpc::ServerContext*, RawStream* stream) {
    const uint64_t generation = s_->Generation();
    grpc::ByteBuffer message;
    if (!stream->Read(&message)) return grpc::Status::OK;
    const std::string hello = ToText(message);
    const auto body = DecodeHello(AsBytes(hello));
    v1::SaveContext save;
    if (!body.ok() || !save.ParseFromArray(body->data(), static_cast<int>(body->size()))) {
      return ToGrpc(absl::InvalidArgumentError("no hello"));
    }
    int puts = 0;
    while (stream->Read(&message)) {
      const std::string head = ToText(message);
      const auto info = DecodeChunkFrame(AsBytes(head));
      if (!info.ok()) return ToGrpc(info.status());
      std::string stored;
      while (stored.size() < info->stored_bytes) {
        if (!stream->Read(&message)) return ToGrpc(absl::InvalidArgumentError("cut short"));
        stored += ToText(message);
      }
      const bool whole =
          stored.size() == info->stored_bytes && Crc32c(AsBytes(stored)) == info->stored_crc32c;
      if (!whole || (info->codec == CodecId::kRaw && HashOf(AsBytes(stored)) != info->hash)) {
        MutexLock lock(&s_->mu_);
        ++s_->damaged_puts_;
        return ToGrpc(absl::DataLossError("a chunk is not what its head says"));
      }
      const absl::Status status = s_->Run(Rpc::kPutChunk, generation, [&]() -> absl::Status {
        s_->mu_.AssertHeld();
        ESKER_RETURN_IF_ERROR(s_->CheckOpen(save));
        if (info->codec == CodecId::kDelta && !s_->durable_.contains(ParseDelta(AsBytes(stored))->base)) {
          return absl::FailedPreconditionError("put it whole");
        }
        s_->put_.push_back(info->hash);
        s_->pending_[info->hash] = {*info, stored};
        return absl::OkStatus();
      });
      if (absl::IsUnavailable(status)) return ToGrpc(status);
      if (!stream->Write(ToBuffer(EncodeAck(DecodeFramePrefix(AsBytes(head))->tag, status)))) break;
      MutexLock lock(&s_->mu_);
      if (++puts == s_->puts_per_stream_) return ToGrpc(absl::DeadlineExceededError("open another stream"));
    }
    return grpc::Status::OK;
  }

  grpc::Status GetRaw(grpc::ServerContext*, RawStream* stream) {
    const uint64_t generation = s_->Generation();
    grpc::ByteBuffer message;
    if (!stream->Read(&message)) return grpc::Status::OK;
    const std::string hello = ToText(message);
    const auto body = DecodeHello(AsBytes(hello));
    if (!body.ok() || body->size() != 8) return ToGrpc(absl::InvalidArgumentError("no hello"));
    const uint64_t lease = LoadLittle<uint64_t>(AsBytes(*body).data());
    while (stream->Read(&message)) {
      const std::string want = ToText(message);
      const auto hash = DecodeWant(AsBytes(want));
      if (!hash.ok()) return ToGrpc(hash.status());
      Outgoing out;
      bool lost = false;
      const absl::Status status = s_->Run(Rpc::kGetChunk, generation, [&]() -> absl::Status {
        s_->mu_.AssertHeld();
        if (!s_->leases_.contains(lease)) return absl::NotFoundError("no such lease");
        s_->wanted_.push_back(*hash);
        const auto chunk = s_->durable_.find(*hash);
        lost = chunk == s_->durable_.end();
        if (lost) return absl::OkStatus();
        out.info = chunk->second.info;
        out.stored = chunk->second.stored;
        if (s_->tamper_) s_->tamper_(&out);
        return absl::OkStatus();
      });
      if (!status.ok()) return ToGrpc(status);
      if (!Answer(stream, DecodeFramePrefix(AsBytes(want))->tag, lost, out)) break;
    }
    return grpc::Status::OK;
  }

  static bool Answer(RawStream* stream, uint64_t tag, bool lost, const Outgoing& out) {
    if (lost)
      return stream->Write(ToBuffer(EncodeErrorFrame(tag, absl::DataLossError("seg-7 at 4096: bad CRC"))));
    if (!stream->Write(ToBuffer(out.head.empty() ? EncodeChunkFrame(tag, out.info) : out.head))) return false;
    for (size_t at = 0; at < out.stored.size(); at += kFrameBodyBytes) {
      if (!stream->Write(ToBuffer(std::string_view(out.stored).substr(at, kFrameBodyBytes)))) return false;
    }
    return true;
  }

  State* const s_;
};

FakeServer::State::State()
    : coordinator_(std::make_unique<CoordinatorService>(this)),
      store_(std::make_unique<StoreService>(this)) {}
FakeServer::State::~State() = default;

FakeServer::FakeServer() : state_(std::make_unique<State>()) { Listen("127.0.0.1:0"); }

FakeServer::~FakeServer() { Stop(); }

void FakeServer::Listen(const std::string& address) {
  {
    MutexLock lock(&state_->mu_);
    state_->stopping_ = false;
  }
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(state_->coordinator_.get());
  builder.RegisterService(state_->store_.get());
  builder.SetMaxReceiveMessageSize(8 << 20);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  server_ = builder.BuildAndStart();
  ESKER_CHECK(server_ != nullptr && port != 0);
  // Constant once it is known: Start may run beside those who ask for it.
  if (address_.empty()) address_ = StrCat("127.0.0.1:", port);
}

void FakeServer::Stop() {
  if (server_ == nullptr) return;
  {
    MutexLock lock(&state_->mu_);
    state_->stopping_ = true;
    state_->stalled_.clear();
    state_->ForgetVolatile();
  }
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
}

void FakeServer::Start() { Listen(address_); }

void FakeServer::Crash() {
  MutexLock lock(&state_->mu_);
  state_->ForgetVolatile();
}

void FakeServer::LosePending() {
  MutexLock lock(&state_->mu_);
  state_->pending_.clear();
}

void FakeServer::ForgetReports() {
  MutexLock lock(&state_->mu_);
  for (auto& [key, save] : state_->saves_) save.reports.clear();
}

void FakeServer::AbortSave(const std::string& run, uint64_t step, const std::string& reason) {
  MutexLock lock(&state_->mu_);
  Save& save = state_->saves_.at({run, step});
  save.state = v1::SaveStatus::ABORTED;
  save.reason = reason;
  state_->changed_.NotifyAll();
}

void FakeServer::LoseEverything() {
  MutexLock lock(&state_->mu_);
  state_->ForgetVolatile();
  state_->saves_.clear();
  state_->checkpoints_.clear();
  state_->durable_.clear();
  state_->sealed_.clear();
  state_->layouts_.clear();
}

void FakeServer::SetHook(Hook hook) {
  MutexLock lock(&state_->mu_);
  state_->hook_ = std::move(hook);
}

void FakeServer::Stall(Rpc rpc) {
  MutexLock lock(&state_->mu_);
  state_->stalled_.insert(rpc);
}

void FakeServer::Unstall() {
  MutexLock lock(&state_->mu_);
  state_->stalled_.clear();
  state_->changed_.NotifyAll();
}

void FakeServer::SetPutsPerStream(int puts) {
  MutexLock lock(&state_->mu_);
  state_->puts_per_stream_ = puts;
}

void FakeServer::AwaitCalls(Rpc rpc, uint64_t count) {
  MutexLock lock(&state_->mu_);
  while (state_->calls_[rpc] < count) state_->changed_.Wait(&state_->mu_);
}

void FakeServer::SetTamper(std::function<void(Outgoing*)> tamper) {
  MutexLock lock(&state_->mu_);
  state_->tamper_ = std::move(tamper);
}

void FakeServer::SetEnvelopeTamper(std::function<void(Rpc, std::string*)> tamper) {
  MutexLock lock(&state_->mu_);
  state_->envelope_tamper_ = std::move(tamper);
}

void FakeServer::SetPartTamper(std::function<void(v1::Part*)> tamper) {
  MutexLock lock(&state_->mu_);
  state_->part_tamper_ = std::move(tamper);
}

uint64_t FakeServer::Calls(Rpc rpc) const {
  MutexLock lock(&state_->mu_);
  const auto entry = state_->calls_.find(rpc);
  return entry == state_->calls_.end() ? 0 : entry->second;
}

std::vector<Hash128> FakeServer::PutHashes() const {
  MutexLock lock(&state_->mu_);
  return state_->put_;
}

std::vector<Hash128> FakeServer::WantedHashes() const {
  MutexLock lock(&state_->mu_);
  return state_->wanted_;
}

uint64_t FakeServer::DamagedPuts() const {
  MutexLock lock(&state_->mu_);
  return state_->damaged_puts_;
}

uint64_t FakeServer::LayoutsReceived() const {
  MutexLock lock(&state_->mu_);
  return state_->layouts_received_;
}

void FakeServer::ForgetCounts() {
  MutexLock lock(&state_->mu_);
  state_->layouts_received_ = 0;
  state_->put_.clear();
  state_->wanted_.clear();
  state_->calls_.clear();
}

bool FakeServer::IsCommitted(const std::string& run, uint64_t step) const {
  MutexLock lock(&state_->mu_);
  return state_->checkpoints_.contains({run, step});
}

std::string FakeServer::AbortReason(const std::string& run, uint64_t step) const {
  MutexLock lock(&state_->mu_);
  const auto save = state_->saves_.find({run, step});
  return save == state_->saves_.end() ? "" : save->second.reason;
}

std::set<CodecId> FakeServer::StoredCodecs() const {
  MutexLock lock(&state_->mu_);
  std::set<CodecId> codecs;
  for (const auto& [hash, chunk] : state_->durable_) codecs.insert(chunk.info.codec);
  return codecs;
}

uint64_t FakeServer::open_leases() const {
  MutexLock lock(&state_->mu_);
  return state_->leases_.size();
}

void FakeServer::DropLeases() {
  MutexLock lock(&state_->mu_);
  state_->leases_.clear();
}

void FakeServer::LoseChunk(const Hash128& hash) {
  MutexLock lock(&state_->mu_);
  state_->durable_.erase(hash);
}

std::map<uint32_t, v1::Part> FakeServer::Parts(const std::string& run, uint64_t step) const {
  MutexLock lock(&state_->mu_);
  std::map<uint32_t, v1::Part> parts;
  const auto checkpoint = state_->checkpoints_.find({run, step});
  if (checkpoint == state_->checkpoints_.end()) return parts;
  for (const auto& [rank, envelope] : checkpoint->second.parts) {
    parts[rank] = *DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, envelope);
  }
  return parts;
}

}  // namespace esker::testing
