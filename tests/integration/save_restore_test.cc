// Whole saves and restores through libesker and a real eskerd.
#include <algorithm>
#include <array>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/integration/server_test.h"

namespace esker::testing {
namespace {

class SaveRestore : public EngineTest {};
INSTANTIATE_ENGINES(SaveRestore);

const std::vector<GlobalTensor>& SomeTensors() {
  static const auto* const kTensors = new std::vector<GlobalTensor>{
      {"embed.weight", ElementType::kBF16, {1000, 64}},
      {"layer.0.weight", ElementType::kF32, {1024, 1500}},  // two chunks, whole
      {"layer.0.scale", ElementType::kF8E8M0, {33, 3}},
      {"step", ElementType::kU64, {}},
      {"nothing", ElementType::kF32, {0, 7}},
  };
  return *kTensors;
}

TEST_P(SaveRestore, AnyNumberOfRanksGetsItsBytesBack) {
  for (uint32_t ranks = 1; ranks <= 8; ++ranks) {
    const std::string run = absl::StrCat("run-", ranks);
    const JobState state = MakeJobState(SomeTensors(), ranks, ranks);
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(run), ranks));
    ASSERT_OK(job->Save(10, state));
    EXPECT_EQ(RestoreDifference(server_->address(), run, 10, SomeTensors(), ranks, ranks), "")
        << ranks << " ranks";
  }
}

TEST_P(SaveRestore, LatestIsTheNewestCommittedStep) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  ASSERT_OK_AND_ASSIGN(std::optional<uint64_t> latest, job->rank(1).LatestStep());
  EXPECT_EQ(latest, std::nullopt);
  for (const uint64_t step : {5, 900, 70}) ASSERT_OK(job->Save(step, MakeJobState(SomeTensors(), 2, step)));
  ASSERT_OK_AND_ASSIGN(latest, job->rank(1).LatestStep());
  EXPECT_EQ(latest, 900);

  RestoreTarget target(RowShards(SomeTensors(), 1, 2));
  ASSERT_OK_AND_ASSIGN(const uint64_t restored, job->rank(1).Restore(std::nullopt, target.tensors()));
  EXPECT_EQ(restored, 900u);
  EXPECT_EQ(target.Difference(900), "");

  ASSERT_OK_AND_ASSIGN(const auto listed, job->rank(0).List());
  std::vector<uint64_t> steps;
  for (const CheckpointInfo& info : listed) steps.push_back(info.step);
  EXPECT_THAT(steps, ::testing::ElementsAre(5, 70, 900));
}

// A job's tensors cut into random boxes that random ranks hold, some of them twice.
JobState ScatteredState(const std::vector<GlobalTensor>& tensors, uint32_t ranks, uint64_t seed,
                        std::mt19937_64& random) {
  JobState state(ranks);
  for (const GlobalTensor& tensor : tensors) {
    for (const TensorBox& box : RandomGrid(tensor, random)) {
      const uint32_t owner = static_cast<uint32_t>(random() % ranks);
      state[owner].AddTensor(box, seed);
      const uint32_t replica = static_cast<uint32_t>(random() % ranks);
      if (replica != owner && random() % 4 == 0) state[replica].AddTensor(box, seed);
    }
  }
  return state;
}

TEST_P(SaveRestore, RandomBoxesOfOneTopologyServeRandomBoxesOfAnother) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 8; ++round) {
    const uint64_t seed = random();
    const std::vector<GlobalTensor> tensors = RandomTensors(random);
    const uint32_t savers = 1 + random() % 6, readers = 1 + random() % 6;
    const std::string run = absl::StrCat("round-", round);
    CheckpointerOptions options = Options(run);
    options.compression =
        std::array{Compression::kNone, Compression::kZstd, Compression::kPlanes}[random() % 3];
    options.chunk_bytes = 4096 << random() % 11;
    ASSERT_OK_AND_ASSIGN(auto job, Job::Open(options, savers));
    ASSERT_OK(job->Save(1, ScatteredState(tensors, savers, seed, random)));

    ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
    ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint(run, 1));
    for (uint32_t rank = 0; rank < readers; ++rank) {
      std::vector<TensorBox> wanted;
      for (const GlobalTensor& tensor : tensors) wanted.push_back(RandomBox(tensor, random));
      RestoreTarget target(wanted);
      ASSERT_OK(checkpoint->Restore(
          {.tensors = target.tensors(), .preferred_rank = rank % savers, .progress = nullptr}));
      EXPECT_EQ(target.Difference(seed), "") << "round " << round << ", reader " << rank;
    }
  }
}

TEST_P(SaveRestore, ZstdShrinksWhatCanShrink) {
  const std::vector<uint64_t> shape = {3, 1 << 20};
  std::vector<float> even(3 << 20, 0.25f);
  State state;
  state.tensors.push_back({WholeTensor("even", ElementType::kF32, shape), even.data()});
  CheckpointerOptions options = Options();
  options.compression = Compression::kZstd;
  ASSERT_OK_AND_ASSIGN(auto checkpointer, Checkpointer::Open(options));
  ASSERT_OK_AND_ASSIGN(const SaveHandle handle, checkpointer->Save(1, state));
  ASSERT_OK(handle.Wait());
  ASSERT_OK_AND_ASSIGN(const auto listed, checkpointer->List());
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].raw_bytes, 12u << 20);
  EXPECT_LT(listed[0].stored_bytes, listed[0].raw_bytes / 100);

  std::vector<float> back(even.size());
  ASSERT_OK(
      checkpointer->Restore(1, {{WholeTensor("even", ElementType::kF32, shape), back.data()}}).status());
  EXPECT_EQ(back, even);
}

TEST_P(SaveRestore, ASecondSaveStoresOnlyWhatChanged) {
  std::vector<GlobalTensor> frozen = {{"frozen", ElementType::kF32, {64, 65536}}};       // 16 MiB
  const std::vector<GlobalTensor> moving = {{"moving", ElementType::kF32, {64, 4096}}};  // 1 MiB
  const auto state_of = [&](uint64_t seed) {
    JobState state;
    for (uint32_t rank = 0; rank < 2; ++rank) {
      state.emplace_back().AddTensor(RowShards(frozen, rank, 2)[0], 0);
      state.back().AddTensor(RowShards(moving, rank, 2)[0], seed);
    }
    return state;
  };
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  ASSERT_OK(job->Save(1, state_of(1)));
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse before, client_->ServerStatus());
  ASSERT_OK_AND_ASSIGN(const auto handles, job->Begin(2, state_of(2)));
  ASSERT_OK(Job::Wait(handles));
  ASSERT_OK_AND_ASSIGN(const v1::StatusResponse after, client_->ServerStatus());

  EXPECT_EQ(handles[0].Progress().deduplicated_bytes, 8u << 20);
  EXPECT_LT(handles[0].Progress().sent_bytes, 1u << 20);
  EXPECT_EQ(after.layouts(), before.layouts());
  EXPECT_EQ(after.parts(), before.parts() + 2);
  // A record's header and padding come on top of the bytes.
  EXPECT_LT(after.live_bytes() - before.live_bytes(), (1u << 20) + (64u << 10));
  ASSERT_OK_AND_ASSIGN(const auto listed, job->rank(0).List());
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].new_stored_bytes, 17u << 20);
  EXPECT_EQ(listed[1].stored_bytes, 17u << 20);
  EXPECT_EQ(listed[1].new_stored_bytes, 1u << 20);
  EXPECT_EQ(listed[0].unchanged_bytes, 0u);
  EXPECT_EQ(listed[1].unchanged_bytes, 16u << 20);
}

TEST_P(SaveRestore, AStepIsSavedOnceByAnAttemptAndReplacedByALaterOne) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 2));
  ASSERT_OK(job->Save(10, MakeJobState(SomeTensors(), 2, 1)));
  EXPECT_STATUS(job->Save(10, MakeJobState(SomeTensors(), 2, 2)), absl::StatusCode::kAlreadyExists, "10");
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 10, SomeTensors(), 2, 1), "");

  job.reset();
  ASSERT_OK_AND_ASSIGN(job, Job::Open(Options("run", "second"), 3));
  ASSERT_OK(job->Save(10, MakeJobState(SomeTensors(), 3, 2)));
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 10, SomeTensors(), 3, 2), "");
  ASSERT_OK_AND_ASSIGN(const auto listed, job->rank(0).List());
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].attempt, 2u);
  EXPECT_EQ(listed[0].world_size, 3u);

  // What was replaced is garbage.
  ASSERT_OK_AND_ASSIGN(const auto collected, client_->CollectGarbage());
  EXPECT_EQ(collected.report().parts_removed(), 2u);
  EXPECT_EQ(RestoreDifference(server_->address(), "run", 10, SomeTensors(), 3, 2), "");
}

TEST_P(SaveRestore, OddTensorNamesComeBack) {
  const std::vector<std::string> names = {"a/b", "../../etc/passwd", "ключ.вес", std::string(4096, 'n'), " "};
  JobState state(1);
  std::vector<TensorBox> boxes;
  for (const std::string& name : names) {
    boxes.push_back(WholeTensor(name, ElementType::kI16, {3}));
    state[0].AddTensor(boxes.back(), 5);
  }
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  ASSERT_OK(job->Save(1, state));
  RestoreTarget target(boxes);
  ASSERT_OK(job->rank(0).Restore(1, target.tensors()).status());
  EXPECT_EQ(target.Difference(5), "");
}

TEST_P(SaveRestore, AStateThatIsWrongIsRefusedAndNothingIsSaved) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  const float value[4] = {};
  const auto save = [&](const TensorBox& box) {
    State state;
    state.tensors = {{box, value}};
    return job->rank(0).Save(1, state).status();
  };
  using Code = absl::StatusCode;
  EXPECT_STATUS(save({"", ElementType::kF32, {4}, {0}, {4}}), Code::kInvalidArgument, "name");
  EXPECT_STATUS(save({std::string("a\0b", 3), ElementType::kF32, {4}, {0}, {4}}), Code::kInvalidArgument,
                "a\\x00b");
  EXPECT_STATUS(save({"\xff", ElementType::kF32, {4}, {0}, {4}}), Code::kInvalidArgument, "UTF-8");
  EXPECT_STATUS(save({std::string(10'240, 'n'), ElementType::kF32, {4}, {0}, {4}}), Code::kInvalidArgument,
                "4096");
  EXPECT_STATUS(save({"t", ElementType::kF32, {4}, {2}, {4}}), Code::kInvalidArgument, "t");
  EXPECT_STATUS(save({"t", ElementType::kF32, {4}, {0}, {4, 1}}), Code::kInvalidArgument, "t");
  EXPECT_STATUS(save({"t", ElementType::kF32, {~uint64_t{0}}, {~uint64_t{0} - 1}, {2}}),
                Code::kInvalidArgument, "t");
  State state;
  state.tensors = {{WholeTensor("t", ElementType::kF32, {2}), value},
                   {WholeTensor("t", ElementType::kF32, {2}), value}};
  EXPECT_STATUS(job->rank(0).Save(1, state), Code::kInvalidArgument, "t");
  EXPECT_STATUS(job->rank(0).Save(~uint64_t{0}, State()), Code::kInvalidArgument, "step");  // -1
  ASSERT_OK_AND_ASSIGN(const v1::ListCheckpointsResponse listed, client_->List("run", true));
  EXPECT_EQ(listed.checkpoints_size() + listed.saves_size(), 0) << listed.DebugString();
}

TEST_P(SaveRestore, AWishThatDoesNotFitIsRefused) {
  ASSERT_OK_AND_ASSIGN(auto job, Job::Open(Options(), 1));
  ASSERT_OK(job->Save(7, MakeJobState(SomeTensors(), 1, 1)));
  std::vector<std::byte> memory(1 << 20);
  const auto restore = [&](const TensorBox& box) {
    return job->rank(0).Restore(7, {{box, memory.data()}}).status();
  };
  using Code = absl::StatusCode;
  EXPECT_STATUS(restore({"embed.weight", ElementType::kBF16, {1000, 64}, {999, 0}, {2, 64}}),
                Code::kInvalidArgument, "embed.weight");
  EXPECT_STATUS(restore({"embed.weight", ElementType::kF16, {1000, 64}, {0, 0}, {2, 64}}),
                Code::kInvalidArgument, "BF16");
  EXPECT_STATUS(restore({"embed.weight", ElementType::kBF16, {64, 1000}, {0, 0}, {2, 64}}),
                Code::kInvalidArgument, "embed.weight");
  EXPECT_STATUS(restore({"no.such", ElementType::kBF16, {2}, {0}, {2}}), Code::kNotFound, "no.such");

  EXPECT_STATUS(job->rank(0).OpenCheckpoint(8), Code::kNotFound, "7");
  ASSERT_OK_AND_ASSIGN(auto reader, Reader::Open({.server = server_->address()}));
  EXPECT_STATUS(reader->List("other"), Code::kNotFound, "other");
  EXPECT_STATUS(reader->OpenCheckpoint("other", std::nullopt), Code::kNotFound, "other");
  EXPECT_STATUS(reader->OpenCheckpoint("../up", 1), Code::kInvalidArgument, "../up");
  EXPECT_STATUS(Checkpointer::Open(Options("../up")), Code::kInvalidArgument, "../up");
  ASSERT_OK_AND_ASSIGN(auto checkpoint, reader->OpenCheckpoint("run", 7));
  EXPECT_STATUS(checkpoint->ReadItem(0, "no.such"), Code::kNotFound, "no.such");
  EXPECT_STATUS(checkpoint->ReadItem(9, "rng"), Code::kInvalidArgument, "rank 9");
}

}  // namespace
}  // namespace esker::testing
