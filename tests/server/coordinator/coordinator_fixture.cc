#include "tests/server/coordinator/coordinator_fixture.h"

#include <cstring>
#include <future>
#include <utility>

#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/envelope.h"
#include "server/catalog/rocks_catalog.h"
#include "spdlog/spdlog.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {

std::function<void(absl::StatusOr<v1::SaveStatus>)> Waiting::Done() {
  return [state = state_](absl::StatusOr<v1::SaveStatus> answer) {
    MutexLock lock(&state->mu);
    EXPECT_EQ(++state->calls, 1) << "WaitSave's callback was called again";
    state->answer = std::move(answer);
    state->called.NotifyAll();
  };
}

bool Waiting::answered() const {
  MutexLock lock(&state_->mu);
  return state_->answer.has_value();
}

absl::StatusOr<v1::SaveStatus> Waiting::Await() {
  MutexLock lock(&state_->mu);
  while (!state_->answer.has_value()) state_->called.Wait(&state_->mu);
  return *state_->answer;
}

SaveRef RefOfContext(const v1::SaveContext& save) { return {save.run(), save.step(), save.save_id()}; }

CoordinatorTest::CoordinatorTest() {
  spdlog::set_level(spdlog::level::err);
  options_.clock = &clock_;
  options_.gc_interval_ms = 0;
  options_.address = "server:7070";
}

void CoordinatorTest::OpenServer() {
  absl::StatusOr<std::unique_ptr<Catalog>> rocks = OpenRocksCatalog(directory_ / "catalog");
  ASSERT_OK(rocks);
  rocks_ = *std::move(rocks);
  catalog_ = std::make_unique<FaultyCatalog>(rocks_.get());
  StoreOptions store_options;
  store_options.directory = directory_ / "store";
  store_options.engine = DiskEngine::kThreadPool;
  store_options.segment_bytes = 16 << 20;
  store_options.buffer_pool_bytes = 16 << 20;
  store_options.min_free_bytes = 0;
  store_options.clock = &clock_;
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(store_options);
  ASSERT_OK(store);
  store_ = *std::move(store);
}

void CoordinatorTest::SetUp() {
  ASSERT_NO_FATAL_FAILURE(OpenServer());
  RestartCoordinator();
}

void CoordinatorTest::TearDown() {
  coordinator_.reset();
  EXPECT_OK(store_->CheckConsistency());
}

void CoordinatorTest::RestartCoordinator() {
  coordinator_.reset();
  absl::StatusOr<std::unique_ptr<Coordinator>> coordinator =
      Coordinator::Start(options_, catalog_.get(), store_.get());
  ASSERT_OK(coordinator);
  coordinator_ = *std::move(coordinator);
}

void CoordinatorTest::RestartServer() {
  coordinator_.reset();
  store_.reset();
  catalog_.reset();
  rocks_.reset();
  ASSERT_NO_FATAL_FAILURE(OpenServer());
  RestartCoordinator();
}

absl::StatusOr<v1::OpenRunResponse> CoordinatorTest::TryOpenRun(const std::string& incarnation,
                                                                const std::string& run) {
  v1::OpenRunRequest request;
  request.set_run(run);
  request.set_incarnation(incarnation);
  return coordinator_->OpenRun(request);
}

uint64_t CoordinatorTest::OpenRun(const std::string& incarnation, const std::string& run) {
  const absl::StatusOr<v1::OpenRunResponse> response = TryOpenRun(incarnation, run);
  EXPECT_OK(response);
  return response.ok() ? response->attempt() : 0;
}

absl::StatusOr<v1::SaveContext> CoordinatorTest::TryBegin(uint64_t attempt, uint64_t step, uint32_t rank,
                                                          uint32_t world_size, const std::string& run) {
  v1::BeginSaveRequest request;
  request.set_run(run);
  request.set_attempt(attempt);
  request.set_step(step);
  request.set_rank(rank);
  request.set_world_size(world_size);
  request.set_raw_bytes(100);
  ESKER_ASSIGN_OR_RETURN(const v1::BeginSaveResponse response, coordinator_->BeginSave(request));
  v1::SaveContext save;
  save.set_run(run);
  save.set_attempt(attempt);
  save.set_step(step);
  save.set_rank(rank);
  save.set_save_id(response.save_id());
  return save;
}

v1::SaveContext CoordinatorTest::Begin(uint64_t attempt, uint64_t step, uint32_t rank, uint32_t world_size,
                                       const std::string& run) {
  const absl::StatusOr<v1::SaveContext> save = TryBegin(attempt, step, rank, world_size, run);
  EXPECT_OK(save);
  return save.ok() ? *save : v1::SaveContext();
}

absl::Status CoordinatorTest::PutChunk(const PartRef& part, const std::string& content) {
  ChunkInfo info;
  info.hash = HashOf(AsBytes(content));
  info.raw_bytes = content.size();
  info.stored_bytes = content.size();
  info.stored_crc32c = Crc32c(AsBytes(content));
  Buffer record = store_->buffers()->Acquire(RecordBytes(info.stored_bytes));
  std::memcpy(record.data() + PayloadOffset(info.stored_bytes), content.data(), content.size());
  auto written = std::make_shared<std::promise<absl::Status>>();
  store_->Put(part, info, std::move(record), [written](absl::Status status) { written->set_value(status); });
  return written->get_future().get();
}

v1::ReportPartRequest CoordinatorTest::Seal(const v1::SaveContext& save, const std::string& content) {
  const PartRef ref{RefOfContext(save), save.attempt(), save.rank()};
  EXPECT_OK(coordinator_->CheckSaveOpen(save));
  EXPECT_OK(PutChunk(ref, content));
  v1::Layout layout;
  layout.add_item_names("content");
  const std::string layout_envelope = EncodeEnvelope(EnvelopeKind::kLayout, layout);
  v1::Part part;
  part.set_run(save.run());
  part.set_step(save.step());
  part.set_attempt(save.attempt());
  part.set_save_id(save.save_id());
  part.set_rank(save.rank());
  part.set_layout_digest(std::string(HashOf(AsBytes(layout_envelope)).AsText()));
  part.set_chunk_hashes(std::string(HashOf(AsBytes(content)).AsText()));
  part.add_item_bytes(content.size());
  part.add_item_chunk_raw_bytes(content.size());
  part.set_raw_bytes(content.size());
  const absl::StatusOr<SealResult> sealed =
      store_->Seal(ref, EncodeEnvelope(EnvelopeKind::kPart, part), layout_envelope);
  EXPECT_OK(sealed);
  v1::ReportPartRequest request;
  *request.mutable_save() = save;
  if (!sealed.ok()) return request;
  EXPECT_TRUE(sealed->missing.empty());
  *request.mutable_part() = sealed->entry;
  request.mutable_part()->add_servers(0);
  request.add_servers()->set_id(store_->id());
  return request;
}

v1::ReportPartRequest CoordinatorTest::Seal(const v1::SaveContext& save) {
  return Seal(save, StrCat("state of ", save.run(), "@", save.step(), " rank ", save.rank()));
}

absl::StatusOr<v1::SaveStatus> CoordinatorTest::TryReport(const v1::ReportPartRequest& request) {
  ESKER_ASSIGN_OR_RETURN(const v1::ReportPartResponse response, coordinator_->ReportPart(request));
  return response.status();
}

v1::SaveStatus CoordinatorTest::Report(const v1::ReportPartRequest& request) {
  const absl::StatusOr<v1::SaveStatus> status = TryReport(request);
  EXPECT_OK(status);
  return status.ok() ? *status : v1::SaveStatus();
}

std::vector<v1::SaveContext> CoordinatorTest::Save(uint64_t attempt, uint64_t step, uint32_t world_size,
                                                   const std::string& run) {
  std::vector<v1::SaveContext> saves;
  for (uint32_t rank = 0; rank < world_size; ++rank)
    saves.push_back(Begin(attempt, step, rank, world_size, run));
  v1::SaveStatus status;
  for (const v1::SaveContext& save : saves) status = Report(Seal(save));
  EXPECT_EQ(status.state(), v1::SaveStatus::COMMITTED);
  return saves;
}

Waiting CoordinatorTest::Wait(const v1::SaveContext& save, uint32_t timeout_ms) {
  v1::WaitSaveRequest request;
  *request.mutable_save() = save;
  request.set_timeout_ms(timeout_ms);
  Waiting waiting;
  coordinator_->WaitSave(request, waiting.Done());
  return waiting;
}

absl::StatusOr<v1::SaveStatus> CoordinatorTest::Poll(const v1::SaveContext& save) {
  return Wait(save, 0).Await();
}

absl::Status CoordinatorTest::Abort(const v1::SaveContext& save, const std::string& reason) {
  v1::AbortSaveRequest request;
  *request.mutable_save() = save;
  request.set_reason(reason);
  return coordinator_->AbortSave(request).status();
}

absl::StatusOr<v1::GetCheckpointResponse> CoordinatorTest::Get(uint64_t step, const std::string& run) {
  v1::GetCheckpointRequest request;
  request.set_run(run);
  request.set_step(step);
  return coordinator_->GetCheckpoint(request);
}

absl::Status CoordinatorTest::Delete(uint64_t step, bool even_if_pinned) {
  v1::DeleteCheckpointRequest request;
  request.set_run(kRun);
  request.set_step(step);
  request.set_even_if_pinned(even_if_pinned);
  return coordinator_->DeleteCheckpoint(request).status();
}

absl::Status CoordinatorTest::Pin(uint64_t step, bool pinned, const std::string& note) {
  v1::PinCheckpointRequest request;
  request.set_run(kRun);
  request.set_step(step);
  request.set_pinned(pinned);
  request.set_note(note);
  return coordinator_->PinCheckpoint(request).status();
}

std::string CoordinatorTest::Steps(const std::string& run) {
  v1::ListCheckpointsRequest request;
  request.set_run(run);
  const absl::StatusOr<v1::ListCheckpointsResponse> response = coordinator_->ListCheckpoints(request);
  EXPECT_OK(response);
  std::string steps;
  if (!response.ok()) return steps;
  EXPECT_EQ(response->saves_size(), 0);
  for (const v1::CheckpointRecord& record : response->checkpoints()) {
    EXPECT_EQ(record.state(), v1::CheckpointRecord::COMMITTED);
    steps += StrCat(steps.empty() ? "" : " ", record.step());
  }
  return steps;
}

v1::ListCheckpointsResponse CoordinatorTest::ListAll(const std::string& run) {
  v1::ListCheckpointsRequest request;
  request.set_run(run);
  request.set_all(true);
  absl::StatusOr<v1::ListCheckpointsResponse> response = coordinator_->ListCheckpoints(request);
  EXPECT_OK(response);
  return response.ok() ? *std::move(response) : v1::ListCheckpointsResponse();
}

v1::CollectGarbageResponse CoordinatorTest::Collect(const v1::CollectGarbageRequest& request) {
  absl::StatusOr<v1::CollectGarbageResponse> response = coordinator_->CollectGarbage(request);
  EXPECT_OK(response);
  return response.ok() ? *std::move(response) : v1::CollectGarbageResponse();
}

SaveRef CoordinatorTest::Committed(uint64_t step, const std::string& run) {
  const absl::StatusOr<v1::GetCheckpointResponse> response = Get(step, run);
  EXPECT_OK(response);
  return response.ok() ? SaveRef{run, step, response->record().save_id()} : SaveRef();
}

void CoordinatorTest::ExpectReadable(const SaveRef& save, uint32_t world_size) {
  for (uint32_t rank = 0; rank < world_size; ++rank) {
    const absl::StatusOr<StoredPart> stored = store_->GetPart(save, rank);
    ASSERT_OK(stored);
    const absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, stored->envelope);
    ASSERT_OK(part);
    const absl::StatusOr<Hash128> hash = HashFromBytes(part->chunk_hashes(), "chunk");
    ASSERT_OK(hash);
    std::promise<absl::Status> read;
    store_->ReadChunk(*hash, ReadMode::kFromDisk,
                      [&](const ChunkReadOr& chunk) { read.set_value(chunk.status()); });
    EXPECT_OK(read.get_future().get());
  }
}

bool CoordinatorTest::StoreHas(const SaveRef& save) {
  const absl::StatusOr<std::vector<SaveRef>> held = store_->ListSaves();
  EXPECT_OK(held);
  return held.ok() && std::find(held->begin(), held->end(), save) != held->end();
}

void CoordinatorTest::Pass(int64_t ms) {
  clock_.Advance(ms);
  coordinator_->Tick();
}

}  // namespace esker::testing
