#include "client/chunk_fetcher.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "client/backoff.h"
#include "client/get_stream.h"
#include "client/local_access.h"
#include "client/local_reads.h"
#include "client/parallel.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr int kFewTimes = 3;
// Questions without an answer on one source. So few that they always fit into the connection: a server that
// sends as long as nobody reads takes no more of them, and this side does not read while it waits to ask.
constexpr size_t kMostAskedChunks = 32;
// A server that is reached but sends nothing for so many times the time limit is given up: it may have much
// to do for others.
constexpr uint64_t kSilenceFactor = 3;
// Restores this small go over the connection that is there already.
constexpr uint64_t kSmallRestoreBytes = 4 << 20;
constexpr uint64_t kProgressSteps = 200;

// Which of them may cure what another try may cure.
bool IsLeaseLost(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsFailedPrecondition(status);
}

}  // namespace

ChunkFetcher::ChunkFetcher(const RestorePlan* plan, Connection* connection, ReadLease* lease,
                           const FetchOptions& options)
    : plan_(plan),
      connection_(connection),
      lease_(lease),
      options_(options),
      threads_(static_cast<int>(
          std::clamp<size_t>(plan->chunks().size(), 1, static_cast<size_t>(options.threads)))),
      window_bytes_(kWindowBytes / static_cast<uint64_t>(threads_)),
      left_(plan->chunks().size()),
      sources_(static_cast<size_t>(threads_), nullptr) {
  std::iota(left_.begin(), left_.end(), size_t{0});
}

absl::Status ChunkFetcher::Run() {
  if (!plan_->chunks().empty()) {
    RunOnThreads(threads_, [this](int worker) { Work(static_cast<size_t>(worker)); });
  }
  MutexLock lock(&mu_);
  if (failure_.ok()) ESKER_CHECK(left_.empty());
  return failure_;
}

void ChunkFetcher::Work(size_t worker) {
  ChunkPlacer placer(plan_);
  Backoff backoff;
  int tries_left = kFewTimes;
  while (true) {
    std::deque<size_t> asked;
    const absl::Status status = FetchSome(worker, &placer, &asked);
    if (status.ok()) return;
    {
      MutexLock lock(&mu_);
      left_.insert(left_.begin(), asked.begin(), asked.end());
      if (!failure_.ok()) return;
    }
    if (const absl::Status final = Recover(status, worker, &tries_left); !final.ok()) {
      Fail(final);
      return;
    }
    backoff.Sleep(Deadline::After(options_.timeout_ms));
  }
}

absl::Status ChunkFetcher::FetchSome(size_t worker, ChunkPlacer* placer, std::deque<size_t>* asked) {
  absl::StatusOr<std::unique_ptr<ChunkSource>> source = OpenSource(worker);
  if (!source.ok()) return Annotate(source.status(), options_.label);
  SetSource(worker, source->get());
  const absl::Status status = FetchFrom(source->get(), placer, asked);
  SetSource(worker, nullptr);
  return Annotate(status, options_.label);
}

absl::StatusOr<std::unique_ptr<ChunkSource>> ChunkFetcher::OpenSource(size_t worker) {
  const bool is_small = plan_->total_bytes() <= kSmallRestoreBytes;
  const bool must_share = options_.transport == Transport::kSharedMemory;
  if (must_share || (options_.transport == Transport::kAuto && !is_small)) {
    absl::StatusOr<std::unique_ptr<LocalReads>> local =
        LocalReads::Open(connection_, lease_->id(), Deadline::After(options_.timeout_ms));
    if (local.ok()) return local;
    if (must_share) {
      return IsForGood(local.status()) ? absl::UnimplementedError(local.status().message()) : local.status();
    }
    MutexLock lock(&mu_);
    why_not_shared_ = local.status();
  }
  return std::make_unique<GetStream>(
      is_small ? connection_->ControlChannel() : connection_->DataChannel(worker), connection_->server(),
      lease_->id());
}

absl::Status ChunkFetcher::FetchFrom(ChunkSource* source, ChunkPlacer* placer, std::deque<size_t>* asked) {
  uint64_t asked_bytes = 0;
  while (true) {
    ESKER_RETURN_IF_ERROR(Ask(source, asked, &asked_bytes));
    if (asked->empty()) return absl::OkStatus();
    const absl::StatusOr<FetchedChunk> fetched = source->Next(kSilenceFactor * options_.timeout_ms);
    if (!fetched.ok()) {
      // Most likely in the answer to the oldest question.
      return Annotate(fetched.status(), plan_->Describe(plan_->chunks()[asked->front()]));
    }
    asked_bytes -= plan_->chunks()[fetched->tag].raw_bytes;
    ESKER_RETURN_IF_ERROR(Take(*source, *fetched, placer));
    asked->erase(std::find(asked->begin(), asked->end(), fetched->tag));
  }
}

absl::Status ChunkFetcher::Ask(ChunkSource* source, std::deque<size_t>* asked, uint64_t* asked_bytes) {
  while (true) {
    size_t next;
    {
      MutexLock lock(&mu_);
      if (!failure_.ok()) return failure_;
      if (left_.empty()) return absl::OkStatus();
      next = left_.front();
      const uint64_t bytes = plan_->chunks()[next].raw_bytes;
      const bool full = asked->size() >= kMostAskedChunks || *asked_bytes + bytes > window_bytes_;
      if (!asked->empty() && full) return absl::OkStatus();
      left_.pop_front();
      *asked_bytes += bytes;
    }
    asked->push_back(next);
    ESKER_RETURN_IF_ERROR(source->Want(next, plan_->chunks()[next].hash));
  }
}

absl::Status ChunkFetcher::Take(const ChunkSource& source, const FetchedChunk& fetched, ChunkPlacer* placer) {
  const RestoreChunk& chunk = plan_->chunks()[fetched.tag];
  absl::Status status = fetched.error;
  if (status.ok()) {
    const absl::StatusOr<uint64_t> placed = placer->Place(chunk, fetched);
    if (placed.ok()) {
      Placed(*placed, source.transport());
      return absl::OkStatus();
    }
    ESKER_RETURN_IF_ERROR(source.CheckNotTakenBack());
    status = placed.status();
  }
  // A committed checkpoint's chunk that the server does not have is data lost, whatever the server calls it.
  const absl::StatusCode code = absl::IsNotFound(status) ? absl::StatusCode::kDataLoss : status.code();
  return absl::Status(code, StrCat(plan_->Describe(chunk), ": ", MessageOf(status)));
}

absl::Status ChunkFetcher::Recover(const absl::Status& error, size_t worker, int* tries_left) {
  Deadline give_up = Deadline::After(options_.timeout_ms);
  {
    MutexLock lock(&mu_);
    if (!give_up_.has_value()) give_up_ = give_up;
    give_up = *give_up_;
  }
  const Retry retry = RetryOf(error);
  const bool few = retry == Retry::kFewTimes || IsLeaseLost(error);
  if (absl::IsDataLoss(error) || (retry == Retry::kNever && !few) || (few && --*tries_left < 0)) return error;
  if (give_up.Passed()) {
    return absl::UnavailableError(StrCat(MessageOf(error), " (no progress in ", options_.timeout_ms,
                                         " ms since the connection was lost)"));
  }
  connection_->ResetData(worker);
  connection_->ResetControl();
  return Annotate(lease_->Refresh(give_up), options_.label);
}

Transport ChunkFetcher::transport() const {
  MutexLock lock(&mu_);
  if (came_shared_ == came_by_grpc_) return Transport::kAuto;
  return came_shared_ ? Transport::kSharedMemory : Transport::kGrpc;
}

void ChunkFetcher::Placed(uint64_t bytes, Transport transport) {
  {
    MutexLock lock(&mu_);
    give_up_.reset();
    (transport == Transport::kGrpc ? came_by_grpc_ : came_shared_) = true;
    if (transport == Transport::kGrpc && !why_not_shared_.ok()) {
      TellWhyGrpc(connection_, why_not_shared_);
      why_not_shared_ = absl::OkStatus();
    }
  }
  if (!options_.progress) return;
  MutexLock lock(&progress_mu_);
  placed_bytes_ += bytes;
  const uint64_t total = plan_->total_bytes();
  if (placed_bytes_ - reported_bytes_ < total / kProgressSteps && placed_bytes_ < total) return;
  reported_bytes_ = placed_bytes_;
  options_.progress(placed_bytes_, total);
}

void ChunkFetcher::Fail(const absl::Status& status) {
  MutexLock lock(&mu_);
  if (failure_.ok()) failure_ = status;
  for (ChunkSource* source : sources_) {
    if (source != nullptr) source->Cancel();
  }
}

void ChunkFetcher::SetSource(size_t worker, ChunkSource* source) {
  MutexLock lock(&mu_);
  sources_[worker] = source;
  if (source != nullptr && !failure_.ok()) source->Cancel();
}

}  // namespace esker
