#include "server/coordinator/coordinator.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/hash.h"
#include "format/names.h"
#include "server/coordinator/catalog_records.h"
#include "server/coordinator/checkpoints.h"
#include "server/coordinator/commit.h"
#include "server/coordinator/garbage.h"
#include "server/coordinator/handed_over.h"
#include "server/coordinator/manifests.h"
#include "server/coordinator/requests.h"
#include "server/coordinator/runs.h"
#include "server/coordinator/save_sessions.h"
#include "server/coordinator/save_watch.h"
#include "server/coordinator/saves.h"
#include "spdlog/spdlog.h"

namespace esker {
namespace {

// How often the background threads look: the waits that run out are answered so much late at most.
constexpr std::chrono::milliseconds kWatchPeriod{100};
constexpr std::chrono::milliseconds kCollectorPeriod{500};

}  // namespace

class Coordinator::Impl {
 public:
  Impl(const CoordinatorOptions& options, Catalog* catalog, Store* store)
      : options_(options),
        store_(store),
        records_(catalog),
        runs_(&records_, options.clock),
        sessions_(options.clock),
        saves_(&records_, &runs_, &sessions_, store, options.clock),
        committer_(&records_, &saves_, &sessions_, store, options.clock, options.address),
        manifests_(store),
        checkpoints_(&records_, &runs_, &sessions_, &manifests_),
        watch_(&runs_, &saves_, &sessions_, &committer_, store, options.clock, options.save_timeout_ms),
        collector_(&records_, &runs_, &saves_, store, options.clock),
        handed_over_(options.clock),
        last_collection_ms_(options.clock->MonotonicMillis()) {}

  ~Impl() {
    {
      MutexLock lock(&stop_mu_);
      stopping_ = true;
    }
    stop_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
    sessions_.Close();
  }

  absl::Status Start();
  absl::StatusOr<v1::OpenRunResponse> OpenRun(const v1::OpenRunRequest& request);
  absl::StatusOr<v1::ReportPartResponse> ReportPart(const v1::ReportPartRequest& request);
  void WaitSave(const v1::WaitSaveRequest& request, WaitDone done);
  absl::Status AbortSave(const v1::AbortSaveRequest& request);
  absl::Status CheckSaveOpen(const v1::SaveContext& save);
  void WatchSaves() ABSL_LOCKS_EXCLUDED(watching_);
  void CollectIfDue() ABSL_LOCKS_EXCLUDED(collecting_);

  Runs& runs() { return runs_; }
  Saves& saves() { return saves_; }
  Checkpoints& checkpoints() { return checkpoints_; }
  GarbageCollector& collector() { return collector_; }
  HandedOver& handed_over() { return handed_over_; }

 private:
  // Until the coordinator stops: calls `look`, then rests for `period`.
  void Repeat(std::chrono::milliseconds period, const std::function<void()>& look);
  absl::Status CheckSealedHere(const v1::ReportPartRequest& request) const;
  // What a report says after the save was committed: whether it is the one that was committed.
  absl::Status CheckAgainstCommitted(const v1::CheckpointRecord& record, const v1::PartEntry& part);
  absl::StatusOr<v1::SaveStatus> Report(const v1::ReportPartRequest& request);
  // Takes `done` and leaves it empty if there is something to wait for; otherwise returns the answer.
  absl::StatusOr<v1::SaveStatus> WaitOrAnswer(const v1::WaitSaveRequest& request, WaitDone* done);

  const CoordinatorOptions options_;
  Store* const store_;

  // Each has its own locks. In the order in which they depend on each other.
  const CatalogRecords records_;
  Runs runs_;
  SaveSessions sessions_;
  Saves saves_;
  SaveCommitter committer_;
  Manifests manifests_;
  Checkpoints checkpoints_;
  SaveWatch watch_;
  GarbageCollector collector_;
  HandedOver handed_over_;

  // Held over one look of each kind, before all other locks: so that Tick returns only when a look that began
  // after its call is done.
  Mutex watching_;
  std::string last_problem_ ABSL_GUARDED_BY(watching_);
  Mutex collecting_;
  int64_t last_collection_ms_ ABSL_GUARDED_BY(collecting_);

  Mutex stop_mu_;  // a leaf
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(stop_mu_) = false;

  std::vector<std::thread> threads_;  // constant after Start
};

absl::Status Coordinator::Impl::Start() {
  ESKER_RETURN_IF_ERROR(saves_.LoadOpen());
  // Apart, since a collection may take long, and waits must not wait for it.
  threads_.emplace_back([this] { Repeat(kWatchPeriod, [this] { WatchSaves(); }); });
  threads_.emplace_back([this] { Repeat(kCollectorPeriod, [this] { CollectIfDue(); }); });
  return absl::OkStatus();
}

void Coordinator::Impl::Repeat(std::chrono::milliseconds period, const std::function<void()>& look) {
  while (true) {
    {
      MutexLock lock(&stop_mu_);
      const auto until = std::chrono::steady_clock::now() + period;
      while (!stopping_ && stop_.WaitUntil(&stop_mu_, until)) {
      }
      if (stopping_) return;
    }
    look();
  }
}

void Coordinator::Impl::WatchSaves() {
  MutexLock lock(&watching_);
  const std::string problem = watch_.Look().ToString();
  // Once, and not ten times a second.
  if (problem != std::exchange(last_problem_, problem) && problem != absl::OkStatus().ToString()) {
    spdlog::warn("looking after the saves under way: {}", problem);
  }
}

void Coordinator::Impl::CollectIfDue() {
  if (options_.gc_interval_ms == 0) return;
  MutexLock lock(&collecting_);
  const int64_t now_ms = options_.clock->MonotonicMillis();
  if (now_ms - last_collection_ms_ < static_cast<int64_t>(options_.gc_interval_ms)) return;
  last_collection_ms_ = now_ms;
  const absl::StatusOr<v1::CollectGarbageResponse> collected =
      collector_.Collect(v1::CollectGarbageRequest());
  if (!collected.ok()) spdlog::warn("garbage collection: {}", collected.status().ToString());
}

absl::StatusOr<v1::OpenRunResponse> Coordinator::Impl::OpenRun(const v1::OpenRunRequest& request) {
  ESKER_ASSIGN_OR_RETURN(const bool is_new, runs_.IsNewIncarnation(request.run(), request.incarnation()));
  if (is_new) ESKER_RETURN_IF_ERROR(handed_over_.CheckNone(request.run()));
  v1::OpenRunResponse response;
  ESKER_ASSIGN_OR_RETURN(const uint64_t attempt, runs_.Open(request.run(), request.incarnation()));
  response.set_attempt(attempt);
  ESKER_RETURN_IF_ERROR(saves_.AbortOlder(request.run(), attempt));
  // Read after the new attempt shut the older ones out: none of them can commit a later one any more.
  ESKER_ASSIGN_OR_RETURN(const StoredCheckpoint latest, records_.LatestCommitted(request.run()));
  response.set_has_latest(latest.exists());
  if (latest.exists()) response.set_latest_step(latest.record.step());
  return response;
}

absl::Status Coordinator::Impl::CheckSealedHere(const v1::ReportPartRequest& request) const {
  const v1::PartEntry& part = request.part();
  const bool here = std::any_of(part.servers().begin(), part.servers().end(), [&](uint32_t index) {
    return request.servers(static_cast<int>(index)).id() == store_->id();
  });
  if (!here) return absl::OkStatus();
  const std::string name = StrCat(NameOf(RefOf(request.save())), ", rank ", part.rank());
  const absl::StatusOr<StoredPart> sealed = store_->GetPart(RefOf(request.save()), part.rank());
  if (absl::IsNotFound(sealed.status())) {
    return absl::FailedPreconditionError(
        StrCat(name, ": it reports a part that is not sealed here; seal it first"));
  }
  ESKER_RETURN_IF_ERROR(Annotate(sealed.status(), name));
  ESKER_ASSIGN_OR_RETURN(const Hash128 reported, HashFromBytes(part.part_digest(), "the part's digest"));
  ESKER_ASSIGN_OR_RETURN(const Hash128 held,
                         HashFromBytes(sealed->entry.part_digest(), "the sealed part's digest"));
  if (reported != held) {
    return absl::AlreadyExistsError(StrCat(
        name, ": it reports the part ", reported.ToHex(), ", but the part ", held.ToHex(),
        " is sealed for this rank: two processes claim it. Give each process of the job a rank of its own"));
  }
  if (part.layout_digest() != sealed->entry.layout_digest() ||
      part.raw_bytes() != sealed->entry.raw_bytes()) {
    return absl::InvalidArgumentError(StrCat(name, ": it reports ", part.raw_bytes(),
                                             " raw bytes, the sealed part has ", sealed->entry.raw_bytes(),
                                             ", or another layout; report the entry that sealing returned"));
  }
  if (part.unchanged_bytes() > part.raw_bytes()) {
    return absl::InvalidArgumentError(StrCat(name, ": it reports ", part.unchanged_bytes(),
                                             " unchanged bytes of a part of ", part.raw_bytes()));
  }
  return absl::OkStatus();
}

absl::Status Coordinator::Impl::CheckAgainstCommitted(const v1::CheckpointRecord& record,
                                                      const v1::PartEntry& part) {
  // Its manifest may be gone already if it is being deleted.
  if (record.state() != v1::CheckpointRecord::COMMITTED) return absl::OkStatus();
  ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<const StoredManifest> stored, manifests_.Read(record));
  const v1::PartEntry& committed = stored->manifest.parts(static_cast<int>(part.rank()));
  if (committed.part_digest() == part.part_digest()) return absl::OkStatus();
  ESKER_ASSIGN_OR_RETURN(const Hash128 first,
                         HashFromBytes(committed.part_digest(), "the committed part's digest"));
  ESKER_ASSIGN_OR_RETURN(const Hash128 second, HashFromBytes(part.part_digest(), "the part's digest"));
  return absl::AlreadyExistsError(
      StrCat(NameOf(RefOf(record)), " has been committed with the part ", first.ToHex(), " of rank ",
             part.rank(), ", which now reports ", second.ToHex(),
             ": two processes claim this rank. Give each process of the job a rank of its own"));
}

absl::StatusOr<v1::SaveStatus> Coordinator::Impl::Report(const v1::ReportPartRequest& request) {
  const SaveRef save = RefOf(request.save());
  const std::vector<v1::ServerInfo> servers(request.servers().begin(), request.servers().end());
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, saves_.FindForNewest(request.save()));
    if (standing.state == SaveStanding::State::kCommitted) {
      ESKER_RETURN_IF_ERROR(CheckAgainstCommitted(standing.checkpoint.record, request.part()));
      return StatusOf(save, standing);
    }
    ESKER_RETURN_IF_ERROR(CheckOpen(save, standing));
    ESKER_RETURN_IF_ERROR(CheckSealedHere(request));
    ESKER_ASSIGN_OR_RETURN(const bool open, saves_.EnsureSession(standing.save.record));
    if (!open) continue;
    ESKER_ASSIGN_OR_RETURN(std::optional<v1::SaveStatus> status,
                           sessions_.Report(save, request.part(), servers));
    if (status.has_value() && status->reported() < status->world_size()) return *std::move(status);
    // The last one in, or the save ended just now: how it stands after this is in the catalog.
    ESKER_RETURN_IF_ERROR(committer_.CommitIfComplete(save));
  }
  return LostTooManyRaces(StrCat("reporting a part of ", NameOf(save)));
}

absl::StatusOr<v1::ReportPartResponse> Coordinator::Impl::ReportPart(const v1::ReportPartRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckReportPart(request));
  ESKER_ASSIGN_OR_RETURN(v1::SaveStatus status, Report(request));
  v1::ReportPartResponse response;
  *response.mutable_status() = std::move(status);
  return response;
}

void Coordinator::Impl::WaitSave(const v1::WaitSaveRequest& request, WaitDone done) {
  absl::StatusOr<v1::SaveStatus> answer = WaitOrAnswer(request, &done);
  if (done) done(std::move(answer));
}

absl::StatusOr<v1::SaveStatus> Coordinator::Impl::WaitOrAnswer(const v1::WaitSaveRequest& request,
                                                               WaitDone* done) {
  const v1::SaveContext& context = request.save();
  const SaveRef save = RefOf(context);
  ESKER_RETURN_IF_ERROR(CheckSaveContext(context));
  for (int race = 0; race < kMaxLostRaces; ++race) {
    ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, saves_.FindFor(context));
    if (standing.state != SaveStanding::State::kSaving) return StatusOf(save, standing);
    ESKER_RETURN_IF_ERROR(runs_.RequireAttempt(context.run(), context.attempt()).status());
    ESKER_ASSIGN_OR_RETURN(const bool open, saves_.EnsureSession(standing.save.record));
    if (open && sessions_.Wait(save, context.rank(), std::min(request.timeout_ms(), kMaxWaitMs), done)) {
      *done = nullptr;
      return v1::SaveStatus();
    }
  }
  return LostTooManyRaces(StrCat("waiting for ", NameOf(save)));
}

absl::Status Coordinator::Impl::AbortSave(const v1::AbortSaveRequest& request) {
  const SaveRef save = RefOf(request.save());
  ESKER_RETURN_IF_ERROR(CheckSaveContext(request.save()));
  ESKER_ASSIGN_OR_RETURN(SaveStanding standing, saves_.FindForNewest(request.save()));
  // If it was aborted before, this ends what ranks that did not know have begun in the store since.
  if (standing.state == SaveStanding::State::kSaving || standing.state == SaveStanding::State::kAborted) {
    const std::string who = StrCat("rank ", request.save().rank(), ": ");
    const std::string reason =
        request.reason().starts_with(who) ? request.reason() : StrCat(who, request.reason());
    ESKER_ASSIGN_OR_RETURN(standing, saves_.Abort(save, reason));
  }
  if (standing.state == SaveStanding::State::kAborted) return absl::OkStatus();
  return CheckOpen(save, standing);
}

absl::Status Coordinator::Impl::CheckSaveOpen(const v1::SaveContext& save) {
  ESKER_RETURN_IF_ERROR(CheckSaveContext(save));
  ESKER_ASSIGN_OR_RETURN(const SaveStanding standing, saves_.FindForNewest(save));
  ESKER_RETURN_IF_ERROR(CheckOpen(RefOf(save), standing));
  // The store forgets a part when it is sealed: between two looks of the watch it may have come and gone.
  sessions_.Progress(RefOf(save), options_.clock->MonotonicMillis());
  return absl::OkStatus();
}

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() = default;

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(const CoordinatorOptions& options,
                                                                Catalog* catalog, Store* store) {
  auto impl = std::make_unique<Impl>(options, catalog, store);
  ESKER_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(impl)));
}

absl::StatusOr<v1::OpenRunResponse> Coordinator::OpenRun(const v1::OpenRunRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckOpenRun(request));
  return impl_->OpenRun(request);
}

std::shared_ptr<const void> Coordinator::HoldSave(const std::string& run) {
  return impl_->handed_over().Hold(run);
}

absl::StatusOr<v1::BeginSaveResponse> Coordinator::BeginSave(const v1::BeginSaveRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckBeginSave(request));
  ESKER_ASSIGN_OR_RETURN(const uint64_t save_id, impl_->saves().Begin(request));
  v1::BeginSaveResponse response;
  response.set_save_id(save_id);
  return response;
}

absl::StatusOr<v1::ReportPartResponse> Coordinator::ReportPart(const v1::ReportPartRequest& request) {
  return impl_->ReportPart(request);
}

void Coordinator::WaitSave(const v1::WaitSaveRequest& request, WaitDone done) {
  impl_->WaitSave(request, std::move(done));
}

absl::StatusOr<v1::AbortSaveResponse> Coordinator::AbortSave(const v1::AbortSaveRequest& request) {
  ESKER_RETURN_IF_ERROR(impl_->AbortSave(request));
  return v1::AbortSaveResponse();
}

absl::Status Coordinator::CheckSaveOpen(const v1::SaveContext& save) { return impl_->CheckSaveOpen(save); }

absl::Status Coordinator::CheckCommitted(const SaveRef& save) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(save.run, save.step));
  return impl_->checkpoints().CheckCommitted(save);
}

absl::StatusOr<v1::ListRunsResponse> Coordinator::ListRuns(const v1::ListRunsRequest&) {
  return impl_->runs().List();
}

absl::StatusOr<v1::ListCheckpointsResponse> Coordinator::ListCheckpoints(
    const v1::ListCheckpointsRequest& request) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(request.run()));
  return impl_->checkpoints().List(request);
}

absl::StatusOr<v1::GetCheckpointResponse> Coordinator::GetCheckpoint(
    const v1::GetCheckpointRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(request.run(), request.latest() ? 0 : request.step()));
  return impl_->checkpoints().Get(request);
}

absl::StatusOr<v1::DeleteCheckpointResponse> Coordinator::DeleteCheckpoint(
    const v1::DeleteCheckpointRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(request.run(), request.step()));
  ESKER_RETURN_IF_ERROR(impl_->checkpoints().Delete(request));
  return v1::DeleteCheckpointResponse();
}

absl::StatusOr<v1::PinCheckpointResponse> Coordinator::PinCheckpoint(
    const v1::PinCheckpointRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckPin(request));
  return impl_->checkpoints().Pin(request);
}

absl::StatusOr<v1::SetRetentionResponse> Coordinator::SetRetention(const v1::SetRetentionRequest& request) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(request.run()));
  return impl_->runs().SetRetention(request);
}

absl::StatusOr<v1::CollectGarbageResponse> Coordinator::CollectGarbage(
    const v1::CollectGarbageRequest& request) {
  if (!request.run().empty()) ESKER_RETURN_IF_ERROR(ValidateRunName(request.run()));
  return impl_->collector().Collect(request);
}

void Coordinator::Tick() {
  impl_->WatchSaves();
  impl_->CollectIfDue();
}

}  // namespace esker
