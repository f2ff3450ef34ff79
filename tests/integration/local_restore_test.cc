// Restores of clients on the server's host: over shared memory and over gRPC they give the same.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class LocalRestoreLog : public ServerTest {
 protected:
  void SetUp() override { StartServer(); }

  static std::vector<GlobalTensor> Tensors() {
    return {{"weights", ElementType::kF32, {48, 256 << 10}},  // 48 MiB
            {"bias", ElementType::kBF16, {96, 10}},
            {"scale", ElementType::kF32, {}}};
  }

  // The step is the seed, so that no chunk is known already.
  void Save(Compression compression, uint64_t step = 1) {
    CheckpointerOptions options = Options();
    options.compression = compression;
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, 2));
    ASSERT_OK(job->Save(step, MakeJobState(Tensors(), 2, step)));
  }

  absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpoint(Transport transport) {
    ReaderOptions options;
    options.server = server_->address();
    options.threads = 2;
    options.transport = transport;
    ESKER_ASSIGN_OR_RETURN(reader_, Reader::Open(options));
    return reader_->OpenCheckpoint("run", std::nullopt);
  }

  // Two ranks' boxes into three.
  absl::Status Restore(Transport transport, uint32_t rank, RestoreTarget* target,
                       ProgressCallback progress = {}) {
    ESKER_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(transport));
    RestoreRequest request;
    request.tensors = target->tensors();
    request.preferred_rank = rank;
    request.progress = std::move(progress);
    return checkpoint->Restore(request);
  }

  std::unique_ptr<Reader> reader_;
};

class LocalRestore : public LocalRestoreLog, public ::testing::WithParamInterface<Transport> {};

std::string TransportName(const ::testing::TestParamInfo<Transport>& info) {
  return info.param == Transport::kGrpc ? "Grpc" : "SharedMemory";
}
INSTANTIATE_TEST_SUITE_P(Transports, LocalRestore,
                         ::testing::Values(Transport::kGrpc, Transport::kSharedMemory), TransportName);

TEST_P(LocalRestore, GivesEveryByteBack) {
  uint64_t step = 0;
  for (const Compression compression : {Compression::kNone, Compression::kZstd, Compression::kPlanes}) {
    ASSERT_NO_FATAL_FAILURE(Save(compression, ++step));
    for (uint32_t rank = 0; rank < 3; ++rank) {
      RestoreTarget target(RowShards(Tensors(), rank, 3));
      ASSERT_OK(Restore(GetParam(), rank, &target));
      EXPECT_EQ(target.Difference(step), "");
    }
  }
}

TEST_P(LocalRestore, SaysWhichWayItCame) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(GetParam()));
  EXPECT_EQ(checkpoint->transport(), Transport::kAuto);
  RestoreTarget target(RowShards(Tensors(), 0, 1));
  RestoreRequest request;
  request.tensors = target.tensors();
  ASSERT_OK(checkpoint->Restore(request));
  EXPECT_EQ(checkpoint->transport(), GetParam());
}

TEST_P(LocalRestore, OneOpenCheckpointServesManyRestoresAtATime) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(GetParam()));
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      for (int round = 0; round < 3; ++round) {
        RestoreTarget target(RowShards(Tensors(), rank, 4));
        RestoreRequest request;
        request.tensors = target.tensors();
        EXPECT_OK(checkpoint->Restore(request));
        EXPECT_EQ(target.Difference(1), "");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(LocalRestore, NamesWhatIsDamaged) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  server_->Kill();
  for (const auto& entry : std::filesystem::directory_iterator(dir_ / "data/segments")) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string zeros(64 << 10, '\0');
    file.seekp(6 << 20);
    file.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
    ASSERT_TRUE(file.good());
  }
  ASSERT_OK(server_->Start());
  RestoreTarget target(RowShards(Tensors(), 0, 1));
  EXPECT_STATUS(Restore(GetParam(), 0, &target), absl::StatusCode::kDataLoss, "weights");
}

TEST_P(LocalRestore, GoesOnWhenTheServerIsKilledAndStartedAgain) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  for (int round = 0; round < 3; ++round) {
    RestoreTarget target(RowShards(Tensors(), 0, 1));
    std::atomic<uint64_t> done_bytes{0};
    absl::Status restored;
    std::atomic<bool> over{false};
    std::thread restorer([&] {
      restored = Restore(GetParam(), 0, &target, [&](uint64_t done, uint64_t) { done_bytes = done; });
      over = true;
    });
    while (done_bytes == 0 && !over) std::this_thread::yield();
    if (round == 1) {
      EXPECT_EQ(server_->Stop(), 0) << server_->Log();
    } else {
      server_->Kill();
    }
    const absl::Status restarted = server_->Start();
    restorer.join();
    ASSERT_OK(restarted);
    ASSERT_OK(restored);
    EXPECT_EQ(target.Difference(1), "");
  }
}

TEST_P(LocalRestore, WithoutASocketIsOverGrpcOrAnError) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  ASSERT_TRUE(std::filesystem::remove(dir_ / "data/local.sock"));
  RestoreTarget target(RowShards(Tensors(), 0, 1));
  if (GetParam() == Transport::kSharedMemory) {
    EXPECT_STATUS(Restore(GetParam(), 0, &target), absl::StatusCode::kUnimplemented, "another host");
  }
  ASSERT_OK(Restore(GetParam() == Transport::kGrpc ? Transport::kGrpc : Transport::kAuto, 0, &target));
  EXPECT_EQ(target.Difference(1), "");
}

TEST_F(LocalRestoreLog, SaysOnceForEachReaderWhyItGoesThroughGrpc) {
  ASSERT_NO_FATAL_FAILURE(Save(Compression::kNone));
  // What Restore leaves on stderr. `rounds` restores with one Reader.
  const auto log_of = [this](Transport transport, int rounds) {
    ::testing::internal::CaptureStderr();
    const auto checkpoint = OpenCheckpoint(transport);
    EXPECT_OK(checkpoint.status());
    RestoreTarget target(RowShards(Tensors(), 0, 1));
    RestoreRequest request;
    request.tensors = target.tensors();
    for (int i = 0; i < rounds && checkpoint.ok(); ++i) EXPECT_OK((*checkpoint)->Restore(request));
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(log_of(Transport::kAuto, 1), "");
  // A socket that nobody serves: the server is here all the same.
  ASSERT_NO_FATAL_FAILURE(EndLocalSocket());
  EXPECT_THAT(log_of(Transport::kAuto, 2), IsOneLineWith("local.sock"));
  ASSERT_TRUE(std::filesystem::remove(dir_ / "data/local.sock"));
  EXPECT_THAT(log_of(Transport::kAuto, 2), IsOneLineWith("seems to be on another host"));
  EXPECT_EQ(log_of(Transport::kGrpc, 1), "");
}

}  // namespace
}  // namespace esker::testing
