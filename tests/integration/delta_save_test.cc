// Training runs whose saves are stored as deltas: what they take on the disk, and that each comes back as it
// was.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/admin.h"
#include "format/chunk_record.h"
#include "format/delta.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

constexpr uint32_t kRanks = 2;

// A record in the server's segments.
struct Record {
  ChunkInfo info;
  std::filesystem::path file;
  uint64_t payload_offset = 0;
  std::optional<Hash128> base;  // of a delta
};

class DeltaSave : public ServerTest, public ::testing::WithParamInterface<Transport> {
 protected:
  void SetUp() override { ASSERT_NO_FATAL_FAILURE(StartServer()); }

  CheckpointerOptions DeltaOptions(Compression compression = Compression::kDelta) const {
    CheckpointerOptions options = Options();
    options.compression = compression;
    options.transport = GetParam();
    options.chunk_bytes = 256 << 10;
    return options;
  }
  std::unique_ptr<Job> Open(const CheckpointerOptions& options, uint32_t ranks = kRanks) {
    absl::StatusOr<std::unique_ptr<Job>> job = Job::Open(options, ranks);
    EXPECT_OK(job);
    return *std::move(job);
  }
  // Returns what was stored of it.
  uint64_t Save(Job* job, uint64_t step, uint64_t seed) {
    const JobState state = MakeTrainingState(job->ranks(), seed, step);
    const absl::StatusOr<std::vector<SaveHandle>> handles = job->Begin(step, state);
    EXPECT_OK(handles);
    if (!handles.ok()) return 0;
    EXPECT_OK(Job::Wait(*handles));
    uint64_t bytes = 0;
    raw_bytes_ = 0;
    for (const SaveHandle& handle : *handles) {
      EXPECT_EQ(handle.Progress().transport, GetParam());
      bytes += handle.Progress().sent_bytes;
      raw_bytes_ += handle.Progress().raw_bytes;
    }
    return bytes;
  }
  // Empty if the step is as it was saved.
  std::string Difference(uint64_t step, uint64_t seed, uint32_t ranks = kRanks) {
    return TrainingDifference(server_->address(), "run", step, ranks, seed);
  }

  v1::StatusResponse Status() {
    const absl::StatusOr<v1::StatusResponse> status = client_->ServerStatus();
    EXPECT_OK(status);
    return status.ok() ? *status : v1::StatusResponse();
  }
  void KeepLast(uint64_t count) {
    v1::RetentionPolicy policy;
    policy.set_keep_last(count);
    EXPECT_OK(client_->CollectGarbage(&policy, "run"));
  }
  // After a start the server waits for readers of the time before it.
  void CollectUntilPartsAre(uint64_t parts) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (Status().parts() != parts && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      ASSERT_OK(client_->CollectGarbage());
    }
    ASSERT_EQ(Status().parts(), parts);
  }
  std::vector<v1::ChunkFault> Verify(uint64_t step) {
    std::vector<v1::ChunkFault> faults;
    const absl::StatusOr<std::unique_ptr<AdminClient>> admin = AdminClient::Make(server_->address(), 10'000);
    EXPECT_OK(admin);
    const absl::StatusOr<CheckpointManifest> checkpoint = (*admin)->GetCheckpoint("run", step);
    EXPECT_OK(checkpoint);
    EXPECT_OK((*admin)->VerifyParts(checkpoint->record, {}, [&](const v1::VerifyPartsProgress& progress) {
      faults.insert(faults.end(), progress.faults().begin(), progress.faults().end());
      return true;
    }));
    return faults;
  }

  // Everything that lies in the segments.
  std::map<Hash128, Record> ReadRecords() {
    std::map<Hash128, Record> records;
    for (const auto& entry : std::filesystem::directory_iterator(server_->data_directory() + "/segments")) {
      std::ifstream file(entry.path(), std::ios::binary);
      std::vector<char> block(kRecordAlignment);
      for (uint64_t at = 0;
           file.seekg(static_cast<std::streamoff>(at)) && file.read(block.data(), kRecordAlignment);
           at += kRecordAlignment) {
        const absl::StatusOr<ChunkHeader> header = DecodeChunkHeader(AsBytes({block.data(), block.size()}));
        if (!header.ok() || header->place.offset != at) continue;
        Record record{header->info, entry.path(), at + header->payload_offset, std::nullopt};
        if (header->info.codec == CodecId::kDelta) {
          std::vector<char> stored(header->info.stored_bytes);
          file.seekg(static_cast<std::streamoff>(record.payload_offset));
          file.read(stored.data(), static_cast<std::streamsize>(stored.size()));
          const absl::StatusOr<Delta> delta = ParseDelta(AsBytes({stored.data(), stored.size()}));
          EXPECT_OK(delta);
          if (delta.ok()) record.base = delta->base;
        }
        records[header->info.hash] = record;
      }
    }
    return records;
  }

  uint64_t raw_bytes_ = 0;  // of the last save
};

TEST_P(DeltaSave, TakesLittleAndComesBackBitForBit) {
  const uint64_t seed = TestSeed();
  constexpr uint64_t kSteps = 8;
  uint64_t as_planes = 0;
  {
    CheckpointerOptions options = DeltaOptions(Compression::kPlanes);
    options.run = "planes";
    const auto job = Open(options);
    as_planes = kSteps * Save(job.get(), 1, seed + 1000);  // other bytes of the same kind
  }
  const auto job = Open(DeltaOptions());
  uint64_t stored = 0;
  for (uint64_t step = 1; step <= kSteps; ++step) {
    stored += Save(job.get(), step, seed);
    EXPECT_EQ(Difference(step, seed), "") << "step " << step;
  }
  EXPECT_LT(stored, as_planes / 2);
  std::printf("raw %llu, planes %llu, delta %llu bytes\n",
              static_cast<unsigned long long>(kSteps * raw_bytes_),
              static_cast<unsigned long long>(as_planes), static_cast<unsigned long long>(stored));
  for (const uint32_t ranks : {1U, 3U}) EXPECT_EQ(Difference(kSteps, seed, ranks), "") << ranks << " ranks";
  for (uint64_t step = 1; step <= kSteps; ++step) EXPECT_TRUE(Verify(step).empty()) << "step " << step;
}

TEST_P(DeltaSave, GivesAnyBoxOfATensor) {
  const uint64_t seed = TestSeed();
  const auto job = Open(DeltaOptions());
  for (uint64_t step = 1; step <= 3; ++step) Save(job.get(), step, seed);
  ASSERT_OK_AND_ASSIGN(const auto reader, Reader::Open({.server = server_->address()}));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, reader->OpenCheckpoint("run", 3));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 10; ++i) {
    std::vector<TensorBox> boxes;
    for (const GlobalTensor& tensor : TrainingTensors()) boxes.push_back(RandomBox(tensor, random));
    RestoreTarget target(boxes);
    RestoreRequest request;
    request.tensors = target.tensors();
    ASSERT_OK(checkpoint->Restore(request));
    EXPECT_EQ(target.Difference(TrainingContent(seed, 3)), "");
  }
}

TEST_P(DeltaSave, FollowsAStateThatChangesAllAtOnce) {
  const uint64_t seed = TestSeed();
  const auto job = Open(DeltaOptions());
  const uint64_t whole = Save(job.get(), 1, seed);
  EXPECT_LT(Save(job.get(), 2, seed), whole / 2);
  EXPECT_GT(Save(job.get(), 3, seed + 1), whole / 2);
  EXPECT_GT(Save(job.get(), 4, seed + 1), whole / 2) << "the new base";
  for (uint64_t step = 5; step <= 6; ++step) EXPECT_LT(Save(job.get(), step, seed + 1), whole / 2);
  for (uint64_t step = 1; step <= 6; ++step)
    EXPECT_EQ(Difference(step, step < 3 ? seed : seed + 1), "") << step;
}

TEST_P(DeltaSave, BasesStayAsLongAsTheirDeltas) {
  const uint64_t seed = TestSeed();
  const auto job = Open(DeltaOptions());
  uint64_t whole = 0;
  for (uint64_t step = 1; step <= 6; ++step) {
    const uint64_t stored = Save(job.get(), step, seed);
    if (step == 1) whole = stored;
    EXPECT_LT(stored, step == 1 ? whole + 1 : whole / 2) << "step " << step;
    KeepLast(2);
    for (uint64_t kept = step == 1 ? 1 : step - 1; kept <= step; ++kept)
      EXPECT_EQ(Difference(kept, seed), "") << kept;
  }
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  EXPECT_EQ(listed.checkpoints_size(), 2);
  ASSERT_NO_FATAL_FAILURE(RestartServer());
  EXPECT_EQ(Difference(6, seed), "");
  EXPECT_TRUE(Verify(5).empty());

  ASSERT_OK(client_->Delete("run", 6));
  ASSERT_NO_FATAL_FAILURE(CollectUntilPartsAre(kRanks));
  EXPECT_EQ(Difference(5, seed), "");
  ASSERT_OK(client_->Delete("run", 5));
  ASSERT_NO_FATAL_FAILURE(CollectUntilPartsAre(0));
  EXPECT_EQ(Status().chunks(), 0u);
  EXPECT_EQ(Status().live_bytes(), 0u);
}

TEST_P(DeltaSave, GoesOnAfterTheServerWasKilled) {
  const uint64_t seed = TestSeed();
  const auto job = Open(DeltaOptions());
  uint64_t whole = 0;
  std::vector<uint64_t> stored;
  for (uint64_t step = 1; step <= 6; ++step) {
    stored.push_back(Save(job.get(), step, seed));
    if (step == 1) whole = stored.back();
    EXPECT_EQ(Difference(step, seed), "") << "step " << step;
    if (step == 1 || step == 4) {
      ASSERT_NO_FATAL_FAILURE(RestartServer());
    }
  }
  // Out of shared memory, the server does not remember a base of before its start; what it then takes whole
  // is one.
  for (size_t i = 1; i < stored.size(); ++i) {
    const bool is_first = i == 1 || i == 4;
    if (is_first && GetParam() == Transport::kSharedMemory) {
      EXPECT_GT(stored[i], whole / 2) << "step " << i + 1;
    } else {
      EXPECT_LT(stored[i], whole / 2) << "step " << i + 1;
    }
  }
  for (uint64_t step = 1; step <= 6; ++step) EXPECT_EQ(Difference(step, seed), "") << "step " << step;
}

TEST_P(DeltaSave, IsStoredWholeWhereTheBaseIsGone) {
  const uint64_t seed = TestSeed();
  const auto job = Open(DeltaOptions());
  const uint64_t whole = Save(job.get(), 1, seed);
  ASSERT_OK(client_->Delete("run", 1));
  ASSERT_OK(client_->CollectGarbage());
  ASSERT_EQ(Status().chunks(), 0u);
  EXPECT_GT(Save(job.get(), 2, seed), whole / 2);
  EXPECT_EQ(Difference(2, seed), "");
  // That is what later ones have as their base.
  EXPECT_LT(Save(job.get(), 3, seed), whole / 2);
  EXPECT_LT(Save(job.get(), 4, seed), whole / 2);
  EXPECT_EQ(Difference(4, seed), "");
}

TEST_P(DeltaSave, VerifyNamesADamagedBase) {
  const uint64_t seed = TestSeed();
  {
    const auto job = Open(DeltaOptions());
    for (uint64_t step = 1; step <= 2; ++step) Save(job.get(), step, seed);
  }
  ASSERT_OK(client_->Delete("run", 1));  // only the deltas hold on to the base
  ASSERT_OK(client_->CollectGarbage());
  EXPECT_TRUE(Verify(2).empty());
  server_->Kill();
  const std::map<Hash128, Record> records = ReadRecords();
  std::optional<Hash128> delta;
  for (const auto& [hash, record] : records) {
    if (record.base.has_value()) delta = hash;
  }
  ASSERT_TRUE(delta.has_value());
  const Hash128 base_hash = *records.at(*delta).base;
  const Record& base = records.at(base_hash);
  {
    std::fstream file(base.file, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(base.payload_offset + base.info.stored_bytes / 2);
    file.seekg(at);
    const char byte = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 1));
  }
  ASSERT_OK(server_->Start());
  client_ = std::make_unique<RawClient>(server_->address());
  const std::vector<v1::ChunkFault> faults = Verify(2);
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].hash(), delta->AsText());
  EXPECT_THAT(faults[0].error(), ::testing::HasSubstr(base_hash.ToHex()));
  EXPECT_THAT(faults[0].error(), ::testing::HasSubstr(base.file.filename().string()));
  EXPECT_THAT(Difference(2, seed), ::testing::HasSubstr(base_hash.ToHex()));
}

INSTANTIATE_TEST_SUITE_P(Transports, DeltaSave, ::testing::Values(Transport::kSharedMemory, Transport::kGrpc),
                         [](const ::testing::TestParamInfo<Transport>& info) {
                           return std::string(info.param == Transport::kGrpc ? "Grpc" : "SharedMemory");
                         });

}  // namespace
}  // namespace esker::testing
