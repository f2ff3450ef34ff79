#include "esker/reader.h"

#include <string>
#include <vector>

#include "esker/esker.h"
#include "tests/client/fake_server.h"
#include "tests/client/state_builder.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class ReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ReaderOptions options;
    options.server = server_.address();
    ASSERT_OK_AND_ASSIGN(reader_, Reader::Open(options));
  }

  // Two ranks: halves of "w", a "bias" on both, and an item each.
  void Save(uint64_t step) {
    static const std::vector<uint8_t> bytes(64, 3);
    std::vector<SaveHandle> handles;
    std::vector<std::unique_ptr<Checkpointer>> ranks;
    for (uint32_t rank = 0; rank < 2; ++rank) {
      ASSERT_OK_AND_ASSIGN(ranks.emplace_back(), Checkpointer::Open(TestOptions(server_, rank, 2)));
      State state;
      TensorBox half = WholeTensor("w", ElementType::kF32, {4, 2});
      half.offset = {rank * 2, 0};
      half.extent = {2, 2};
      state.tensors.push_back({half, bytes.data()});
      state.tensors.push_back({WholeTensor("bias", ElementType::kBF16, {3}), bytes.data()});
      state.items.push_back({"loader", rank == 0 ? "zero" : "number one"});
      ASSERT_OK_AND_ASSIGN(const SaveHandle handle, ranks.back()->Save(step, state));
      handles.push_back(handle);
    }
    for (const SaveHandle& handle : handles) ASSERT_OK(handle.Wait());
  }

  FakeServer server_;
  std::unique_ptr<Reader> reader_;
};

TEST_F(ReaderTest, ListsCheckpointsByStep) {
  EXPECT_STATUS(reader_->List("test"), absl::StatusCode::kNotFound, "no such run");
  Save(20);
  Save(3);
  ASSERT_OK_AND_ASSIGN(const auto checkpoints, reader_->List("test"));
  ASSERT_EQ(checkpoints.size(), 2u);
  EXPECT_EQ(checkpoints[0].step, 3u);
  EXPECT_EQ(checkpoints[1].step, 20u);
  EXPECT_EQ(checkpoints[1].run, "test");
  EXPECT_EQ(checkpoints[1].world_size, 2u);
  EXPECT_EQ(checkpoints[1].attempt, 1u);
  EXPECT_EQ(checkpoints[1].raw_bytes, 2u * (16 + 6) + 4 + 10);
}

TEST_F(ReaderTest, SaysWhatIsStored) {
  Save(1);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, reader_->OpenCheckpoint("test", 1));
  EXPECT_EQ(checkpoint->info().step, 1u);
  ASSERT_OK_AND_ASSIGN(const auto tensors, checkpoint->Tensors());
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "bias");
  EXPECT_EQ(tensors[0].type, ElementType::kBF16);
  EXPECT_EQ(tensors[0].shards, 2u);
  EXPECT_EQ(tensors[1].name, "w");
  EXPECT_EQ(tensors[1].shape, (std::vector<uint64_t>{4, 2}));
  ASSERT_OK_AND_ASSIGN(const auto stored, checkpoint->StoredBy(1));
  ASSERT_EQ(stored.size(), 2u);
  EXPECT_EQ(stored[1].name, "w");
  EXPECT_EQ(stored[1].offset, (std::vector<uint64_t>{2, 0}));
  EXPECT_EQ(stored[1].extent, (std::vector<uint64_t>{2, 2}));
  EXPECT_STATUS(checkpoint->StoredBy(2), absl::StatusCode::kInvalidArgument, "ranks 0 to 1");
}

TEST_F(ReaderTest, ReadsItems) {
  Save(1);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, reader_->OpenCheckpoint("test", std::nullopt));
  ASSERT_OK_AND_ASSIGN(const auto items, checkpoint->Items());
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[1].rank, 1u);
  EXPECT_EQ(items[1].name, "loader");
  EXPECT_EQ(items[1].bytes, 10u);
  ASSERT_OK_AND_ASSIGN(const std::string item, checkpoint->ReadItem(1, "loader"));
  EXPECT_EQ(item, "number one");
  EXPECT_STATUS(checkpoint->ReadItem(1, "rng"), absl::StatusCode::kNotFound, "no item \"rng\"");
  EXPECT_STATUS(checkpoint->ReadItem(5, "loader"), absl::StatusCode::kInvalidArgument, "rank 5");
}

TEST_F(ReaderTest, UnknownRunsStepsAndBadNames) {
  EXPECT_STATUS(reader_->OpenCheckpoint("test", std::nullopt), absl::StatusCode::kNotFound, "test");
  Save(1);
  EXPECT_STATUS(reader_->OpenCheckpoint("test", 2), absl::StatusCode::kNotFound, "test");
  EXPECT_STATUS(reader_->OpenCheckpoint("../x", 2), absl::StatusCode::kInvalidArgument, "run name");
  EXPECT_STATUS(reader_->OpenCheckpoint("test", ~uint64_t{0}), absl::StatusCode::kInvalidArgument, "step");
  EXPECT_STATUS(reader_->List("A"), absl::StatusCode::kInvalidArgument, "run name");
}

TEST_F(ReaderTest, OptionsAreChecked) {
  EXPECT_STATUS(Reader::Open({.server = "x"}), absl::StatusCode::kInvalidArgument, "host:port");
  EXPECT_STATUS(Reader::Open({.server = "x:1", .threads = -2}), absl::StatusCode::kInvalidArgument,
                "threads");
}

}  // namespace
}  // namespace esker::testing
