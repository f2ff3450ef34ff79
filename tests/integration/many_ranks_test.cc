// A thousand ranks with tiny parts, from a few threads.
#include <atomic>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

constexpr uint32_t kRanks = 1000;
constexpr uint32_t kThreads = 8;

std::string ContentOf(uint32_t rank) { return ItemContent("weights", rank, 2000, 7); }

class ManyRanks : public ServerTest {};

TEST_F(ManyRanks, CommitOneCheckpoint) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  ASSERT_OK_AND_ASSIGN(const uint64_t attempt, client_->OpenRun("run", "first"));
  std::vector<absl::Status> results(kThreads);
  std::vector<std::thread> threads;
  const auto began = std::chrono::steady_clock::now();
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      RawClient client(server_->address());
      for (uint32_t rank = t; rank < kRanks && results[t].ok(); rank += kThreads) {
        results[t] = RawRank(&client, "run", attempt, rank, kRanks).Save(1, ContentOf(rank));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  for (const absl::Status& result : results) ASSERT_OK(result);

  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", false));
  ASSERT_EQ(listed.checkpoints_size(), 1);
  EXPECT_EQ(listed.checkpoints(0).world_size(), kRanks);
  std::printf("%u ranks from %u threads committed one checkpoint in %.2f s\n", kRanks, kThreads,
              took.count());

  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint("run", 1));
  for (const uint32_t rank : {0u, 1u, 499u, 999u}) {
    std::string back(2000, '\0');
    const TensorBox box = WholeTensor(absl::StrCat("rank.", rank), ElementType::kU8, {2000});
    ASSERT_OK(
        checkpoint->Restore({.tensors = {{box, back.data()}}, .preferred_rank = rank, .progress = nullptr}));
    EXPECT_EQ(back, ContentOf(rank)) << rank;
  }
}

}  // namespace
}  // namespace esker::testing
