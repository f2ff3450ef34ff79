#include "esker/checkpointer.h"

#include <cstdlib>
#include <utility>

#include "client/checkpoint_access.h"
#include "client/connection.h"
#include "client/incarnation.h"
#include "client/placement.h"
#include "client/saver.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/names.h"

namespace esker {
namespace {

constexpr uint64_t kAbortTimeoutMs = 5'000;
constexpr uint64_t kMeasureTimeoutMs = 1'000;

absl::Status CheckOptions(const CheckpointerOptions& options) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(options.run));
  ESKER_RETURN_IF_ERROR(ValidateRank(options.rank, options.world_size));
  if (options.chunk_bytes == 0 || options.chunk_bytes % kRecordAlignment != 0 ||
      options.chunk_bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(StrCat("chunk_bytes ", options.chunk_bytes, ": expected a multiple of ",
                                             kRecordAlignment, ", at most ", kMaxChunkBytes));
  }
  if (options.threads < 0) {
    return absl::InvalidArgumentError(
        StrCat("threads ", options.threads, ": expected 0 (automatic) or more"));
  }
  if (options.compression == Compression::kDelta && !options.keep_staging) {
    return absl::InvalidArgumentError(
        "compression delta: it compares each save with an earlier one, whose bytes stay in the staging "
        "memory; expected keep_staging");
  }
  return absl::OkStatus();
}

}  // namespace

class Checkpointer::Impl {
 public:
  Impl(const CheckpointerOptions& options, uint64_t attempt, std::shared_ptr<Connection> connection)
      : options(options), attempt(attempt), connection(connection), saver(options, attempt, connection) {}

  CheckpointAccess Access() const {
    return {connection,      options.run,      options.rank, options.connect_timeout_ms,
            options.threads, options.transport};
  }

  const CheckpointerOptions options;
  const uint64_t attempt;
  const std::shared_ptr<Connection> connection;
  Saver saver;
};

absl::StatusOr<std::unique_ptr<Checkpointer>> Checkpointer::Open(const CheckpointerOptions& given) {
  CheckpointerOptions options = given;
  ESKER_RETURN_IF_ERROR(CheckOptions(options));
  ESKER_ASSIGN_OR_RETURN(options.incarnation,
                         ChooseIncarnation(given.incarnation, given.world_size,
                                           [](const char* name) { return std::getenv(name); }));
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection,
                         Connection::Make(PlacePart(options.rank, {options.server}).front()));
  v1::OpenRunRequest request;
  request.set_run(options.run);
  request.set_incarnation(options.incarnation);
  ESKER_ASSIGN_OR_RETURN(const v1::OpenRunResponse response,
                         connection->CallUntil("OpenRun", &v1::Coordinator::Stub::OpenRun, request,
                                               Deadline::After(options.connect_timeout_ms)));
  auto impl = std::make_unique<Impl>(options, response.attempt(), connection);
  ESKER_RETURN_IF_ERROR(impl->saver.Prepare(Deadline::After(options.connect_timeout_ms)));
  connection->MeasureRoundTrip(Deadline::After(kMeasureTimeoutMs));
  return std::unique_ptr<Checkpointer>(new Checkpointer(std::move(impl)));
}

Checkpointer::Checkpointer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Checkpointer::~Checkpointer() {
  // After fork() there are no threads to join, and gRPC can't be shut down: the child leaves all of it to its
  // end.
  if (impl_->saver.Forked()) static_cast<void>(impl_.release());
}

absl::StatusOr<SaveHandle> Checkpointer::Save(uint64_t step, const State& state) {
  return impl_->saver.Save(step, state);
}

absl::Status Checkpointer::Abort(uint64_t step, const std::string& reason) {
  const CheckpointerOptions& options = impl_->options;
  const Deadline deadline = Deadline::After(kAbortTimeoutMs);
  // Only who has joined a save can abort it. Joining twice does no harm.
  v1::BeginSaveRequest join;
  join.set_run(options.run);
  join.set_attempt(impl_->attempt);
  join.set_step(step);
  join.set_rank(options.rank);
  join.set_world_size(options.world_size);
  ESKER_ASSIGN_OR_RETURN(
      const v1::BeginSaveResponse joined,
      impl_->connection->CallUntil("BeginSave", &v1::Coordinator::Stub::BeginSave, join, deadline));
  v1::AbortSaveRequest abort;
  abort.mutable_save()->set_run(options.run);
  abort.mutable_save()->set_step(step);
  abort.mutable_save()->set_attempt(impl_->attempt);
  abort.mutable_save()->set_save_id(joined.save_id());
  abort.mutable_save()->set_rank(options.rank);
  abort.set_reason(StrCat("rank ", options.rank, ": ", reason.substr(0, 1024)));
  return impl_->connection->CallUntil("AbortSave", &v1::Coordinator::Stub::AbortSave, abort, deadline)
      .status();
}

absl::StatusOr<std::optional<uint64_t>> Checkpointer::LatestStep() { return FindLatestStep(impl_->Access()); }

absl::StatusOr<uint64_t> Checkpointer::Restore(std::optional<uint64_t> step,
                                               const std::vector<TargetTensor>& tensors) {
  ESKER_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointReader> reader, OpenCheckpoint(step));
  RestoreRequest request;
  request.tensors = tensors;
  request.preferred_rank = impl_->options.rank;
  ESKER_RETURN_IF_ERROR(reader->Restore(request));
  return reader->info().step;
}

absl::StatusOr<std::unique_ptr<CheckpointReader>> Checkpointer::OpenCheckpoint(std::optional<uint64_t> step) {
  return OpenCheckpointReader(impl_->Access(), step);
}

absl::StatusOr<std::vector<CheckpointInfo>> Checkpointer::List() { return ListCheckpoints(impl_->Access()); }

uint64_t Checkpointer::attempt() const { return impl_->attempt; }

const CheckpointerOptions& Checkpointer::options() const { return impl_->options; }

}  // namespace esker
