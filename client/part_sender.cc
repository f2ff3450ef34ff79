#include "client/part_sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "client/backoff.h"
#include "client/local_access.h"
#include "client/log.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/part_envelope.h"

namespace esker {
namespace {

constexpr uint64_t kCallTimeoutMs = 60'000;
// A seal waits for the disk to take everything that was sent before it.
constexpr uint64_t kSealTimeoutMs = 300'000;
constexpr uint32_t kWaitSaveMs = 30'000;
constexpr uint64_t kAnswerMs = 2'000;
constexpr uint64_t kAbortTimeoutMs = 2'000;
// How often the server's own trouble (Retry::kFewTimes) is tried again.
constexpr int kFewTimes = 3;
// How often a server may say that it lacks chunks that it has just acknowledged.
constexpr int kSealTries = 5;

}  // namespace

PartSender::PartSender(const Snapshot* snapshot, const PartSenderOptions& options, Connection* connection,
                       ArenaSender* arena, ThreadPool* pool, SaveHistory* history, SaveCounters* counters,
                       std::function<void()> on_sealed)
    : snapshot_(snapshot),
      options_(options),
      connection_(connection),
      arena_(arena),
      history_(history),
      counters_(counters),
      on_sealed_(std::move(on_sealed)),
      deadline_(Deadline::After(options.timeout_ms)),
      uploader_(snapshot, options.upload, pool, &history->codec_chooser, counters) {
  save_.set_run(options_.run);
  save_.set_step(options_.step);
  save_.set_attempt(options_.attempt);
  save_.set_rank(options_.rank);
  counters_->raw_bytes = snapshot_->raw_bytes;
}

absl::Status PartSender::Run() {
  absl::Status status = RunAttempts();
  if (!status.ok()) status = Abort(status);
  return Annotate(status, StrCat("run ", options_.run, ", step ", options_.step, ", rank ", options_.rank));
}

absl::Status PartSender::RunAttempts() {
  Backoff backoff;
  int tries_left = kFewTimes;
  while (true) {
    const uint64_t processed = counters_->processed_bytes;
    const absl::Status status = Attempt();
    if (status.ok()) return status;
    // What a torn-down channel still holds of the snapshot it drops at once, even if its peer hangs.
    connection_->Reset();
    const Retry retry = RetryOf(status);
    if (ended_by_server_ || retry == Retry::kNever || (retry == Retry::kFewTimes && --tries_left < 0))
      return status;
    if (deadline_.Passed()) {
      return absl::DeadlineExceededError(
          StrCat("not committed within ", options_.timeout_ms, " ms; last: ", MessageOf(status)));
    }
    if (counters_->processed_bytes > processed) backoff.Reset();
    backoff.Sleep(deadline_);
  }
}

absl::Status PartSender::Attempt() {
  if (begun_) ESKER_RETURN_IF_ERROR(CheckStillOpen(CallDeadline()));
  if (committed_) return absl::OkStatus();
  if (!report_.has_value()) ESKER_RETURN_IF_ERROR(Deliver());
  ESKER_RETURN_IF_ERROR(Report());
  counters_->phase = SaveProgress::Phase::kSealed;
  return committed_ ? absl::OkStatus() : AwaitCommit();
}

Deadline PartSender::CallDeadline() const {
  return Deadline::Sooner(deadline_, Deadline::After(kCallTimeoutMs));
}

absl::Status PartSender::CheckStillOpen(const Deadline& deadline) {
  v1::WaitSaveRequest request;
  *request.mutable_save() = save_;
  ESKER_ASSIGN_OR_RETURN(const v1::SaveStatus status,
                         connection_->Call("WaitSave", &v1::Coordinator::Stub::WaitSave, request, deadline));
  return TakeStatus(status);
}

absl::Status PartSender::Deliver() {
  if (!handed_over_ && arena_->MayShare()) {
    absl::Status started = arena_->Start(*snapshot_, DescribeForArena());
    if (started.ok()) started = arena_->Ready(snapshot_->chunks.size());
    handed_over_ = started.ok();
    if (!started.ok() && arena_->must_share()) return started;
  }
  if (handed_over_) {
    const absl::Status status = DeliverThroughArena();
    if (!absl::IsInvalidArgument(status) || arena_->must_share()) return status;
    arena_->RuleOut(status);  // of another version, perhaps: gRPC will show
  }
  return DeliverThroughGrpc();
}

// --- through shared memory -----------------------------------------------------------------------

v1::ArenaSave PartSender::DescribeForArena() const {
  v1::ArenaSave save;
  save.set_run(options_.run);
  save.set_step(options_.step);
  save.set_attempt(options_.attempt);
  save.set_rank(options_.rank);
  save.set_world_size(options_.world_size);
  save.set_layout_envelope(snapshot_->plan->envelope);
  save.mutable_item_bytes()->Add(snapshot_->item_bytes.begin(), snapshot_->item_bytes.end());
  save.mutable_item_chunk_raw_bytes()->Add(snapshot_->item_chunk_raw_bytes.begin(),
                                           snapshot_->item_chunk_raw_bytes.end());
  const Codec* const codec = options_.upload.codec;
  save.set_codec(static_cast<uint32_t>(codec == nullptr        ? CodecId::kRaw
                                       : options_.upload.delta ? CodecId::kDelta
                                                               : codec->id));
  save.set_records_offset(snapshot_->records_offset);
  if (snapshot_->base != nullptr) save.set_base_offset(snapshot_->base->records_offset);
  save.set_choose_codec(options_.upload.choose_codec);
  return save;
}

bool PartSender::StoredAsDelta() const {
  return report_.has_value() && report_->part().codec() == static_cast<uint32_t>(CodecId::kDelta);
}

std::vector<Hash128> PartSender::Hashes() const {
  if (!report_.has_value() || counters_->transport != Transport::kGrpc) return {};
  return uploader_.Hashes();
}

void PartSender::Announce() {
  if (!arena_->LooksWell()) return;
  const v1::ArenaSave save = DescribeForArena();
  absl::Status started = arena_->Start(*snapshot_, save);
  // One that was started anew since the last save is found at the second try.
  if (absl::IsUnavailable(started) && arena_->LooksWell()) started = arena_->Start(*snapshot_, save);
  handed_over_ = started.ok();
}

void PartSender::Ready(size_t chunks) {
  if (handed_over_) handed_over_ = arena_->Ready(chunks).ok();
}

void PartSender::AwaitTaken() {
  if (!handed_over_ || arena_->AwaitTaken()) return;
  Log(StrCat("run ", options_.run, ", step ", options_.step, ", rank ", options_.rank, ": server ",
             connection_->server(), " does not answer: until it does, this process must live for the save"));
}

absl::Status PartSender::DeliverThroughArena() {
  counters_->transport = Transport::kSharedMemory;
  handed_over_ = false;
  // The next save over gRPC must not be compared with one before this.
  history_->last_chunks.clear();
  while (!report_.has_value()) {
    ESKER_ASSIGN_OR_RETURN(const v1::LocalAnswer answer, arena_->Next(deadline_));
    if (answer.has_accepted()) {
      ESKER_RETURN_IF_ERROR(Begun(answer.accepted().save_id()));
    } else if (answer.has_progress()) {
      Count(answer.progress());
    } else if (answer.has_sealed()) {
      Count(answer.sealed().progress());
      counters_->unchanged_bytes = answer.sealed().entry().unchanged_bytes();
      Sealed(answer.sealed().entry(), answer.sealed().server());
    } else if (answer.has_failed()) {
      return Annotate(ToStatus(answer.failed()), StrCat("server ", connection_->server()));
    }
  }
  return absl::OkStatus();
}

void PartSender::Count(const v1::LocalProgress& progress) {
  counters_->processed_bytes = progress.processed_bytes();
  counters_->sent_bytes = progress.written_bytes();
  counters_->deduplicated_bytes = progress.deduplicated_bytes();
}

// --- through gRPC --------------------------------------------------------------------------------

absl::Status PartSender::DeliverThroughGrpc() {
  counters_->transport = Transport::kGrpc;
  ESKER_RETURN_IF_ERROR(Begin());
  arena_->TellWhyNot();
  ESKER_RETURN_IF_ERROR(uploader_.Upload(connection_, save_, deadline_));
  return Seal();
}

absl::Status PartSender::Begin() {
  v1::BeginSaveRequest request;
  request.set_run(options_.run);
  request.set_attempt(options_.attempt);
  request.set_step(options_.step);
  request.set_rank(options_.rank);
  request.set_world_size(options_.world_size);
  request.set_raw_bytes(snapshot_->raw_bytes);
  ESKER_ASSIGN_OR_RETURN(
      const v1::BeginSaveResponse response,
      connection_->Call("BeginSave", &v1::Coordinator::Stub::BeginSave, request, CallDeadline()));
  return Begun(response.save_id());
}

absl::Status PartSender::Begun(uint64_t save_id) {
  if (begun_ && save_id != save_.save_id()) {
    ended_by_server_ = true;  // ours; the other one is another rank's
    return absl::AbortedError(
        StrCat("server ", connection_->server(),
               ": the save was aborted and begun anew while this rank was not connected"));
  }
  begun_ = true;
  save_.set_save_id(save_id);
  return absl::OkStatus();
}

absl::StatusOr<v1::SealPartResponse> PartSender::CallSeal(const std::string& part_envelope) {
  v1::SealPartRequest request;
  *request.mutable_save() = save_;
  request.set_part_envelope(part_envelope);
  const Deadline deadline = Deadline::Sooner(deadline_, Deadline::After(kSealTimeoutMs));
  const Hash128& layout = snapshot_->plan->digest;
  if (history_->known_layouts.contains(layout)) {
    absl::StatusOr<v1::SealPartResponse> response =
        connection_->Call("SealPart", &v1::Store::Stub::SealPart, request, deadline);
    if (!absl::IsFailedPrecondition(response.status())) return response;
    history_->known_layouts.erase(layout);  // it was collected there, or it is another server
  }
  request.set_layout_envelope(snapshot_->plan->envelope);
  return connection_->Call("SealPart", &v1::Store::Stub::SealPart, request, deadline);
}

absl::Status PartSender::Seal() {
  const std::vector<Hash128> hashes = uploader_.Hashes();
  const std::string part_envelope =
      EncodePartEnvelope(save_, {.layout_digest = snapshot_->plan->digest,
                                 .chunk_hashes = hashes,
                                 .item_bytes = snapshot_->item_bytes,
                                 .item_chunk_raw_bytes = snapshot_->item_chunk_raw_bytes,
                                 .raw_bytes = snapshot_->raw_bytes});
  const Hash128 part_digest = HashOf(AsBytes(part_envelope));
  for (int i = 0; i < kSealTries; ++i) {
    ESKER_ASSIGN_OR_RETURN(const v1::SealPartResponse response, CallSeal(part_envelope));
    if (response.missing_hashes().empty()) {
      if (response.entry().part_digest() != part_digest.AsText()) {
        return absl::DataLossError(StrCat("server ", connection_->server(),
                                          ": SealPart: it sealed a part other than the one that was sent, ",
                                          part_digest.ToHex()));
      }
      history_->known_layouts.insert(snapshot_->plan->digest);
      CountUnchanged(hashes);
      v1::PartEntry entry = response.entry();
      entry.set_unchanged_bytes(counters_->unchanged_bytes);
      entry.set_codec(static_cast<uint32_t>(uploader_.codec()));
      Sealed(entry, response.server());
      return absl::OkStatus();
    }
    std::vector<Hash128> missing;
    for (size_t at = 0; at < response.missing_hashes().size(); at += sizeof(Hash128)) {
      ESKER_ASSIGN_OR_RETURN(
          const Hash128 hash,
          HashFromBytes(std::string_view(response.missing_hashes()).substr(at, sizeof(Hash128)),
                        "SealPart: missing_hashes"));
      missing.push_back(hash);
    }
    ESKER_RETURN_IF_ERROR(uploader_.SendAgain(missing, connection_, save_, deadline_));
  }
  return absl::UnavailableError(StrCat("server ", connection_->server(),
                                       ": SealPart: it lost chunks that it had acknowledged, ", kSealTries,
                                       " times"));
}

void PartSender::Sealed(const v1::PartEntry& entry, const v1::ServerInfo& server) {
  report_.emplace();
  *report_->mutable_save() = save_;
  *report_->mutable_part() = entry;
  report_->mutable_part()->clear_servers();
  report_->mutable_part()->add_servers(0);
  *report_->add_servers() = server;
  on_sealed_();
}

void PartSender::CountUnchanged(const std::vector<Hash128>& hashes) {
  uint64_t unchanged_bytes = 0;
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (history_->last_chunks.contains(hashes[i])) unchanged_bytes += snapshot_->chunks[i].bytes;
  }
  counters_->unchanged_bytes = unchanged_bytes;
  history_->last_chunks = {hashes.begin(), hashes.end()};
}

absl::Status PartSender::Report() {
  ESKER_ASSIGN_OR_RETURN(
      const v1::ReportPartResponse response,
      connection_->Call("ReportPart", &v1::Coordinator::Stub::ReportPart, *report_, CallDeadline()));
  return TakeStatus(response.status());
}

absl::Status PartSender::AwaitCommit() {
  v1::WaitSaveRequest request;
  *request.mutable_save() = save_;
  while (!committed_) {
    request.set_timeout_ms(static_cast<uint32_t>(std::min<uint64_t>(deadline_.LeftMs(), kWaitSaveMs)));
    // Longer than the server is told, so that its answer, which says who is missing, wins.
    const Deadline answer = Deadline::After(request.timeout_ms() + kAnswerMs);
    ESKER_ASSIGN_OR_RETURN(const v1::SaveStatus status,
                           connection_->Call("WaitSave", &v1::Coordinator::Stub::WaitSave, request, answer));
    ESKER_RETURN_IF_ERROR(TakeStatus(status));
    if (committed_) break;
    if (deadline_.Passed()) {
      return absl::DeadlineExceededError(StrCat(
          "this rank's part is sealed, but only ", status.reported(), " of ", status.world_size(),
          " ranks have reported; missing: ", absl::StrJoin(status.missing_ranks(), ", "),
          status.reported() + static_cast<uint32_t>(status.missing_ranks_size()) < status.world_size() ? ", …"
                                                                                                       : ""));
    }
    if (!status.this_rank_reported()) ESKER_RETURN_IF_ERROR(Report());
  }
  return absl::OkStatus();
}

absl::Status PartSender::TakeStatus(const v1::SaveStatus& status) {
  switch (status.state()) {
    case v1::SaveStatus::COMMITTED:
      committed_ = true;
      ended_by_server_ = true;
      return absl::OkStatus();
    case v1::SaveStatus::ABORTED:
      ended_by_server_ = true;
      return absl::AbortedError(
          StrCat("server ", connection_->server(), ": the save was aborted: ", status.reason()));
    case v1::SaveStatus::SAVING:
      return absl::OkStatus();
    default:
      return absl::InternalError(StrCat("server ", connection_->server(), ": the save is in state ",
                                        static_cast<int>(status.state()),
                                        ", which this version does not know"));
  }
}

absl::Status PartSender::Abort(const absl::Status& why) {
  const bool known_to_server = begun_ && !ended_by_server_ && !absl::IsPermissionDenied(why) &&
                               !absl::IsNotFound(why) && !absl::IsAborted(why);
  if (!known_to_server) return why;
  const Deadline deadline = Deadline::After(kAbortTimeoutMs);
  v1::AbortSaveRequest request;
  *request.mutable_save() = save_;
  request.set_reason(StrCat("rank ", options_.rank, ": ", MessageOf(why).substr(0, 1024)));
  const absl::StatusOr<v1::AbortSaveResponse> aborted =
      connection_->Call("AbortSave", &v1::Coordinator::Stub::AbortSave, request, deadline);
  if (aborted.ok() || !report_.has_value()) return why;
  // Too late to abort? A report whose answer was lost may have completed the checkpoint.
  const absl::Status state = CheckStillOpen(deadline);
  return state.ok() && committed_ ? absl::OkStatus() : why;
}

}  // namespace esker
