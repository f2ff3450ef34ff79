#include "client/chunk_fetcher.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "client/backoff.h"
#include "client/parallel.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr int kFewTimes = 3;
// Questions without an answer on one stream. So few that they always fit into the connection: a server that
// sends as long as nobody reads takes no more of them, and this side does not read while it waits to ask.
constexpr size_t kMostAsked = 32;
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
      streams_(static_cast<size_t>(threads_), nullptr) {
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
  GetStream stream(plan_->total_bytes() <= kSmallRestoreBytes ? connection_->ControlChannel()
                                                              : connection_->DataChannel(worker),
                   connection_->server(), lease_->id());
  SetStream(worker, &stream);
  absl::Status status;
  uint64_t asked_bytes = 0;
  while (true) {
    status = Ask(&stream, asked, &asked_bytes);
    if (!status.ok() || asked->empty()) break;
    const absl::StatusOr<FetchedChunk> fetched = stream.Next(kSilenceFactor * options_.timeout_ms);
    if (!fetched.ok()) {
      // It happened in the answer to the oldest question.
      status = Annotate(fetched.status(), plan_->Describe(plan_->chunks()[asked->front()]));
      break;
    }
    asked_bytes -= plan_->chunks()[asked->front()].raw_bytes;
    status = Take(*fetched, placer);
    if (!status.ok()) break;
    asked->pop_front();
  }
  SetStream(worker, nullptr);
  return Annotate(status, options_.label);
}

absl::Status ChunkFetcher::Ask(GetStream* stream, std::deque<size_t>* asked, uint64_t* asked_bytes) {
  while (true) {
    size_t next;
    {
      MutexLock lock(&mu_);
      if (!failure_.ok()) return failure_;
      if (left_.empty()) return absl::OkStatus();
      next = left_.front();
      const uint64_t bytes = plan_->chunks()[next].raw_bytes;
      const bool full = asked->size() >= kMostAsked || *asked_bytes + bytes > window_bytes_;
      if (!asked->empty() && full) return absl::OkStatus();
      left_.pop_front();
      *asked_bytes += bytes;
    }
    asked->push_back(next);
    ESKER_RETURN_IF_ERROR(stream->Want(next, plan_->chunks()[next].hash));
  }
}

absl::Status ChunkFetcher::Take(const FetchedChunk& fetched, ChunkPlacer* placer) {
  const RestoreChunk& chunk = plan_->chunks()[fetched.tag];
  absl::Status status = fetched.error;
  if (status.ok()) {
    const absl::StatusOr<uint64_t> placed = placer->Place(chunk, fetched);
    if (placed.ok()) {
      Placed(*placed);
      return absl::OkStatus();
    }
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

void ChunkFetcher::Placed(uint64_t bytes) {
  {
    MutexLock lock(&mu_);
    give_up_.reset();
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
  for (GetStream* stream : streams_) {
    if (stream != nullptr) stream->Cancel();
  }
}

void ChunkFetcher::SetStream(size_t worker, GetStream* stream) {
  MutexLock lock(&mu_);
  streams_[worker] = stream;
  if (stream != nullptr && !failure_.ok()) stream->Cancel();
}

}  // namespace esker
