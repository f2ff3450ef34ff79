#include "client/admin.h"

#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/hash.h"
#include "format/names.h"

namespace esker {
namespace {

constexpr uint64_t kAnswerMs = 60'000;
// Deleting and collecting walk over parts and segments.
constexpr uint64_t kLongAnswerMs = 3'600'000;

}  // namespace

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Make(const std::string& server,
                                                               uint64_t connect_timeout_ms) {
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection, Connection::Make(server));
  return std::unique_ptr<AdminClient>(new AdminClient(std::move(connection), connect_timeout_ms));
}

absl::Status AdminClient::Reach() {
  const Deadline deadline = Deadline::After(connect_timeout_ms_);
  if (connection_->ControlChannel()->WaitForConnected(deadline.ForGrpc())) return absl::OkStatus();
  return absl::UnavailableError(StrCat("server ", connection_->server(), ": not reached within ",
                                       connect_timeout_ms_,
                                       " ms; is eskerd running there, and is the address right?"));
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> AdminClient::Call(const char* name,
                                           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        Response*),
                                           const Request& request, uint64_t answer_ms) {
  ESKER_RETURN_IF_ERROR(Reach());
  return connection_->Call(name, method, request, Deadline::After(answer_ms));
}

absl::StatusOr<v1::ListRunsResponse> AdminClient::ListRuns() {
  return Call("ListRuns", &v1::Coordinator::Stub::ListRuns, v1::ListRunsRequest(), kAnswerMs);
}

absl::StatusOr<v1::ListCheckpointsResponse> AdminClient::ListCheckpoints(const std::string& run, bool all) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::ListCheckpointsRequest request;
  request.set_run(run);
  request.set_all(all);
  return Call("ListCheckpoints", &v1::Coordinator::Stub::ListCheckpoints, request, kAnswerMs);
}

absl::StatusOr<CheckpointManifest> AdminClient::GetCheckpoint(const std::string& run,
                                                              std::optional<uint64_t> step) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::GetCheckpointRequest request;
  request.set_run(run);
  request.set_latest(!step.has_value());
  request.set_step(step.value_or(0));
  ESKER_ASSIGN_OR_RETURN(v1::GetCheckpointResponse response,
                         Call("GetCheckpoint", &v1::Coordinator::Stub::GetCheckpoint, request, kAnswerMs));
  const std::string label = StrCat("run ", run, ", step ", response.record().step(), ": manifest");
  if (HashOf(AsBytes(response.manifest_envelope())).AsText() != response.record().manifest_digest()) {
    return absl::DataLossError(StrCat(label, ": it does not have the digest that the catalog has"));
  }
  CheckpointManifest checkpoint;
  absl::StatusOr<v1::Manifest> manifest =
      DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, response.manifest_envelope());
  if (!manifest.ok()) return Annotate(manifest.status(), label);
  checkpoint.manifest = *std::move(manifest);
  checkpoint.record = std::move(*response.mutable_record());
  return checkpoint;
}

absl::Status AdminClient::DeleteCheckpoint(const std::string& run, uint64_t step, bool even_if_pinned) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::DeleteCheckpointRequest request;
  request.set_run(run);
  request.set_step(step);
  request.set_even_if_pinned(even_if_pinned);
  return Call("DeleteCheckpoint", &v1::Coordinator::Stub::DeleteCheckpoint, request, kLongAnswerMs).status();
}

absl::StatusOr<v1::CheckpointRecord> AdminClient::PinCheckpoint(const std::string& run,
                                                                std::optional<uint64_t> step, bool pinned,
                                                                const std::string& note) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::PinCheckpointRequest request;
  request.set_run(run);
  request.set_latest(!step.has_value());
  request.set_step(step.value_or(0));
  request.set_pinned(pinned);
  request.set_note(note);
  ESKER_ASSIGN_OR_RETURN(const v1::PinCheckpointResponse response,
                         Call("PinCheckpoint", &v1::Coordinator::Stub::PinCheckpoint, request, kAnswerMs));
  return response.record();
}

absl::Status AdminClient::SetRetention(const std::string& run,
                                       const std::optional<v1::RetentionPolicy>& policy) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::SetRetentionRequest request;
  request.set_run(run);
  if (policy.has_value()) *request.mutable_policy() = *policy;
  return Call("SetRetention", &v1::Coordinator::Stub::SetRetention, request, kAnswerMs).status();
}

absl::StatusOr<v1::CollectGarbageResponse> AdminClient::CollectGarbage(
    const std::string& run, const std::optional<v1::RetentionPolicy>& policy, bool dry_run) {
  if (!run.empty()) ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  v1::CollectGarbageRequest request;
  request.set_run(run);
  if (policy.has_value()) *request.mutable_policy() = *policy;
  request.set_dry_run(dry_run);
  return Call("CollectGarbage", &v1::Coordinator::Stub::CollectGarbage, request, kLongAnswerMs);
}

absl::StatusOr<v1::StatusResponse> AdminClient::Status() {
  return Call("Status", &v1::Store::Stub::Status, v1::StatusRequest(), kAnswerMs);
}

absl::Status AdminClient::VerifyParts(const v1::CheckpointRecord& checkpoint,
                                      const std::vector<uint32_t>& ranks,
                                      const std::function<bool(const v1::VerifyPartsProgress&)>& progress) {
  ESKER_RETURN_IF_ERROR(Reach());
  v1::VerifyPartsRequest request;
  request.set_run(checkpoint.run());
  request.set_step(checkpoint.step());
  request.set_save_id(checkpoint.save_id());
  request.mutable_ranks()->Add(ranks.begin(), ranks.end());
  grpc::ClientContext context;
  const std::shared_ptr<v1::Store::Stub> stub = connection_->store_stub();
  const auto stream = stub->VerifyParts(&context, request);
  v1::VerifyPartsProgress message;
  bool wanted = true;
  while (wanted && stream->Read(&message)) wanted = progress(message);
  if (!wanted) context.TryCancel();
  return FromGrpc(stream->Finish(), connection_->server(), "VerifyParts");
}

}  // namespace esker
