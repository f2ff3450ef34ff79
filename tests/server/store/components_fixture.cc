#include "tests/server/store/components_fixture.h"

#include <filesystem>
#include <utility>

namespace esker::testing {

void ComponentsTest::SetUp() {
  std::filesystem::create_directory(directory_ / "segments");
  Restart();
}

void ComponentsTest::Restart(uint64_t recycle_bytes, uint64_t min_free_bytes) {
  context_ = nullptr;
  segments_ = nullptr;
  sessions_ = nullptr;
  index_ = nullptr;
  disk_ = nullptr;
  absl::StatusOr<std::unique_ptr<Disk>> disk = OpenDisk(directory_ / "segments", DiskEngine::kThreadPool);
  ASSERT_OK(disk);
  disk_ = MakeFaultDisk(*std::move(disk), &faults_);
  absl::StatusOr<std::unique_ptr<store::Index>> index = store::Index::Open(directory_ / "index", nullptr);
  ASSERT_OK(index);
  index_ = *std::move(index);
  sessions_ = std::make_unique<store::Sessions>(&clock_);
  segments_ = std::make_unique<store::SegmentSet>(
      disk_.get(),
      store::SegmentSetOptions{.directory = directory_ / "segments",
                               .store_id = store_id_,
                               .segment_bytes = kSegmentBytes,
                               .recycle_bytes = recycle_bytes,
                               .min_free_bytes = min_free_bytes,
                               .clock = &clock_,
                               .failure_changed = [this](uint64_t id, std::optional<std::string> why) {
                                 failures_.emplace_back(id, std::move(why));
                               }});
  segments_->StopReclaimer();
  context_ = std::make_unique<store::CommitContext>(index_.get(), segments_.get(), sessions_.get(), &counts_,
                                                    &clock_);
}

store::WrittenChunk ComponentsTest::WriteChunk(const PartRef& part, const TestChunk& chunk) {
  store::PutDone done = [](const absl::Status&) {};
  ESKER_CHECK(sessions_->BeginPut(part, chunk.info, &done).ok());
  absl::StatusOr<store::WritePlace> place = segments_->Allocate(chunk.record_bytes());
  ESKER_CHECK(place.ok());
  std::vector<std::byte> memory(chunk.record_bytes() + kBlockBytes);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const MutableBytes record(memory.data() + RoundUp(address, kBlockBytes) - address, chunk.record_bytes());
  EncodeChunkHeader(chunk.info, place->place, record);
  std::memcpy(record.data() + PayloadOffset(chunk.info.stored_bytes), chunk.raw.data(), chunk.raw.size());
  ESKER_CHECK(place->file->Write(place->place.offset, record).ok());
  store::LetGo let_go;
  const store::WrittenChunk written{chunk.info, place->place,
                                    segments_->WriteFinished(place->place.segment_id)};
  sessions_->FinishWrite(part, written, &let_go);
  return written;
}

store::SealRequest ComponentsTest::MakeRequest(const PartRef& part, const std::vector<TestChunk>& chunks) {
  envelopes_.push_back(std::make_unique<TestEnvelopes>(EncodePart(part, chunks)));
  const TestEnvelopes& envelopes = *envelopes_.back();
  absl::StatusOr<store::SealRequest> request =
      store::PrepareSeal(*index_, part, envelopes.part, envelopes.layout);
  ESKER_CHECK(request.ok());
  return *std::move(request);
}

void ComponentsTest::Save(const PartRef& part, const std::vector<TestChunk>& chunks) {
  for (const TestChunk& chunk : chunks) {
    const auto indexed = index_->GetChunk(chunk.hash());
    ESKER_CHECK(indexed.ok());
    const bool written = sessions_->GetWritten(std::vector{chunk.hash()})[0].has_value();
    if (!indexed->has_value() && !written) WriteChunk(part, chunk);
  }
  const store::SealRequest request = MakeRequest(part, chunks);
  store::SealWork work{.request = &request};
  std::vector<store::SealWork*> works = {&work};
  std::vector<store::LetGo> let_go;
  store::SealTogether(context_.get(), works, &let_go);
  ASSERT_OK(work.result);
  ASSERT_TRUE(work.result->missing.empty());
}

store::SegmentInfo ComponentsTest::InfoOf(uint64_t segment_id) const {
  for (const store::SegmentInfo& info : segments_->List()) {
    if (info.id == segment_id) return info;
  }
  return {};
}

}  // namespace esker::testing
