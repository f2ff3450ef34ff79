// Restoring: resharding, what is read and how often, and a server whose answers are not to be believed.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "esker/esker.h"
#include "format/box.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "tests/client/fake_server.h"
#include "tests/client/state_builder.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

// A whole tensor, to be cut into boxes.
struct Reference {
  Reference(TensorBox whole_box, std::mt19937_64* random) : whole(std::move(whole_box)), data(whole.bytes()) {
    for (uint8_t& b : data) b = static_cast<uint8_t>((*random)());
  }

  std::vector<uint8_t> Cut(const TensorBox& box) const {
    std::vector<uint8_t> cut(box.bytes());
    const Box part{box.offset, box.extent};
    ForEachRun(WholeBox(whole.shape), part, part, ElementSize(whole.type), [&](const ByteRun& run) {
      std::memcpy(cut.data() + run.target_offset, data.data() + run.source_offset, run.bytes);
    });
    return cut;
  }

  TensorBox whole;
  std::vector<uint8_t> data;
};

TensorBox BoxIn(const TensorBox& whole, std::vector<uint64_t> offset, std::vector<uint64_t> extent) {
  TensorBox box = whole;
  box.offset = std::move(offset);
  box.extent = std::move(extent);
  return box;
}

// Cuts a dimension of the tensor among `ranks`, unevenly.
std::vector<TensorBox> Shard(const TensorBox& whole, size_t dimension, uint32_t ranks,
                             std::mt19937_64* random) {
  std::vector<uint64_t> cuts = {0, whole.shape[dimension]};
  for (uint32_t i = 1; i < ranks; ++i) cuts.push_back((*random)() % (whole.shape[dimension] + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<TensorBox> boxes;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    TensorBox box = whole;
    box.offset[dimension] = cuts[rank];
    box.extent[dimension] = cuts[rank + 1] - cuts[rank];
    boxes.push_back(box);
  }
  return boxes;
}

class RestoreTest : public ::testing::Test {
 protected:
  RestoreTest() : random_(TestSeed()) {}

  // Saves the state of every rank and waits for the commit.
  void SaveAll(uint64_t step, const std::vector<State>& states, const std::string& incarnation = "first") {
    std::vector<std::unique_ptr<Checkpointer>> ranks;
    std::vector<SaveHandle> handles;
    for (uint32_t rank = 0; rank < states.size(); ++rank) {
      CheckpointerOptions options = TestOptions(server_, rank, static_cast<uint32_t>(states.size()));
      options.incarnation = incarnation;
      ASSERT_OK_AND_ASSIGN(ranks.emplace_back(), Checkpointer::Open(options));
      ASSERT_OK_AND_ASSIGN(const SaveHandle handle, ranks.back()->Save(step, states[rank]));
      handles.push_back(handle);
    }
    for (const SaveHandle& handle : handles) ASSERT_OK(handle.Wait());
  }

  // One rank with one tensor of 30 chunks, in memory that lives as long as the test.
  void SaveOne() {
    reference_ = std::make_unique<Reference>(WholeTensor("model.w", ElementType::kU8, {30 * 4096}), &random_);
    State state;
    state.tensors.push_back({reference_->whole, reference_->data.data()});
    state.items.push_back({"rng", "seed"});
    SaveAll(7, {state});
  }

  absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenLatest() {
    if (reader_ == nullptr) {
      ReaderOptions options;
      options.server = server_.address();
      options.threads = 2;
      options.connect_timeout_ms = 5'000;
      ESKER_ASSIGN_OR_RETURN(reader_, Reader::Open(options));
    }
    return reader_->OpenCheckpoint("test", std::nullopt);
  }

  absl::Status RestoreOne(Room* room, ProgressCallback progress = nullptr) {
    ESKER_ASSIGN_OR_RETURN(const auto checkpoint, OpenLatest());
    RestoreRequest request;
    request.tensors = {room->target()};
    request.progress = std::move(progress);
    return checkpoint->Restore(request);
  }

  void ExpectRestoresOne() {
    Room room(reference_->whole);
    ASSERT_OK(RestoreOne(&room));
    EXPECT_EQ(room.data, reference_->data);
  }

  std::mt19937_64 random_;
  FakeServer server_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<Reference> reference_;
};

TEST_F(RestoreTest, AnyBoxesFromAnyShards) {
  for (int round = 0; round < 12; ++round) {
    const uint32_t ranks = 1 + static_cast<uint32_t>(random_() % 5);
    std::vector<Reference> tensors;
    std::vector<State> states(ranks);
    std::vector<std::vector<uint8_t>> memory;
    memory.reserve(1000);
    const auto add = [&](State* state, const Reference& tensor, const TensorBox& box) {
      memory.push_back(tensor.Cut(box));
      state->tensors.push_back({box, memory.back().data()});
    };
    for (int t = 0; t < 6; ++t) {
      std::vector<uint64_t> shape(1 + random_() % 3);
      for (uint64_t& extent : shape) extent = 1 + random_() % 40;
      const auto type = static_cast<ElementType>(1 + random_() % 20);
      tensors.emplace_back(WholeTensor("layer." + std::to_string(t), type, shape), &random_);
      const auto boxes = Shard(tensors.back().whole, random_() % shape.size(), ranks, &random_);
      const bool replicated = random_() % 4 == 0;
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        add(&states[rank], tensors.back(), replicated ? tensors.back().whole : boxes[rank]);
      }
    }
    SaveAll(static_cast<uint64_t>(round), states);

    std::vector<Room> rooms;
    std::vector<const Reference*> of;
    for (int i = 0; i < 20; ++i) {
      const Reference& tensor = tensors[random_() % tensors.size()];
      TensorBox box = tensor.whole;
      for (size_t d = 0; d < box.shape.size(); ++d) {
        box.offset[d] = random_() % (box.shape[d] + 1);
        box.extent[d] = random_() % (box.shape[d] - box.offset[d] + 1);
      }
      rooms.emplace_back(box);
      of.push_back(&tensor);
    }
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
    RestoreRequest request;
    request.preferred_rank = static_cast<uint32_t>(random_() % 8);
    for (Room& room : rooms) request.tensors.push_back(room.target());
    server_.ForgetCounts();
    ASSERT_OK(checkpoint->Restore(request));
    for (size_t i = 0; i < rooms.size(); ++i) {
      ASSERT_EQ(rooms[i].data, of[i]->Cut(rooms[i].box)) << rooms[i].box.name;
    }
    const std::vector<Hash128> wanted = server_.WantedHashes();
    EXPECT_EQ(std::set<Hash128>(wanted.begin(), wanted.end()).size(), wanted.size())
        << "a chunk was fetched twice";
  }
}

TEST_F(RestoreTest, ReadsOnlyChunksThatHoldWantedBytes) {
  SaveOne();
  server_.ForgetCounts();
  Room room(BoxIn(reference_->whole, {4096 * 3 + 100}, {4096}));
  ASSERT_OK(RestoreOne(&room));
  EXPECT_EQ(room.data, reference_->Cut(room.box));
  EXPECT_EQ(server_.WantedHashes().size(), 2u);
  Room nothing(BoxIn(reference_->whole, {5}, {0}));
  server_.ForgetCounts();
  ASSERT_OK(RestoreOne(&nothing));
  EXPECT_EQ(server_.WantedHashes().size(), 0u);
}

TEST_F(RestoreTest, OwnRankNeedsNobodyElsesMetadata) {
  std::vector<std::vector<uint8_t>> memory(3, std::vector<uint8_t>(5000, 1));
  std::vector<State> states(3);
  const TensorBox whole = WholeTensor("w", ElementType::kU8, {15'000});
  for (uint64_t rank = 0; rank < 3; ++rank) {
    memory[rank].assign(5000, static_cast<uint8_t>(rank + 1));
    states[rank].tensors.push_back({BoxIn(whole, {rank * 5000}, {5000}), memory[rank].data()});
  }
  SaveAll(1, states);
  ASSERT_OK_AND_ASSIGN(const auto checkpointer, Checkpointer::Open(TestOptions(server_, 1, 3)));
  server_.ForgetCounts();
  Room own(states[1].tensors[0].box);
  ASSERT_OK(checkpointer->Restore(1, {own.target()}));
  EXPECT_EQ(own.data, memory[1]);
  EXPECT_EQ(server_.Calls(Rpc::kGetParts), 1u);
  EXPECT_EQ(server_.Calls(Rpc::kGetLayouts), 1u);
  Room both(BoxIn(whole, {4000}, {2000}));
  ASSERT_OK(checkpointer->Restore(1, {both.target()}));
  EXPECT_EQ(both.data[999], 1);
  EXPECT_EQ(both.data[1000], 2);
}

TEST_F(RestoreTest, ReplicasAreReadFromThePreferredRank) {
  std::vector<State> states(2);
  const std::vector<uint8_t> same(4000, 9);
  for (State& state : states)
    state.tensors.push_back({WholeTensor("w", ElementType::kU8, {4000}), same.data()});
  SaveAll(1, states);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  Room room(states[0].tensors[0].box);
  RestoreRequest request;
  request.tensors = {room.target()};
  request.preferred_rank = 77;  // no such rank was there: another world size
  ASSERT_OK(checkpoint->Restore(request));
  EXPECT_EQ(room.data, same);
}

TEST_F(RestoreTest, SeveralTargetsOfTheSameBytes) {
  SaveOne();
  server_.ForgetCounts();
  Room one(reference_->whole);
  Room two(BoxIn(reference_->whole, {0}, {10'000}));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  RestoreRequest request;
  request.tensors = {one.target(), two.target()};
  ASSERT_OK(checkpoint->Restore(request));
  EXPECT_EQ(one.data, reference_->data);
  EXPECT_EQ(two.data, reference_->Cut(two.box));
  EXPECT_EQ(server_.WantedHashes().size(), 30u);
}

TEST_F(RestoreTest, ProgressRisesToTheTotal) {
  SaveOne();
  Room room(reference_->whole);
  std::vector<uint64_t> reports;
  ASSERT_OK(RestoreOne(&room, [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, 30u * 4096);
    reports.push_back(done);
  }));
  ASSERT_FALSE(reports.empty());
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
  EXPECT_EQ(reports.back(), 30u * 4096);
}

TEST_F(RestoreTest, WrongWishesSayWhatThereIs) {
  SaveOne();
  const auto error = [&](const TensorBox& box) {
    Room room(box);
    return RestoreOne(&room);
  };
  EXPECT_STATUS(error(WholeTensor("model.v", ElementType::kU8, {5})), absl::StatusCode::kNotFound,
                "\"model.w\"");
  EXPECT_STATUS(error(WholeTensor("model.w", ElementType::kI8, {30 * 4096})),
                absl::StatusCode::kInvalidArgument, "wanted is I8 of shape [122880], stored is U8");
  EXPECT_STATUS(error(WholeTensor("model.w", ElementType::kU8, {3, 40960})),
                absl::StatusCode::kInvalidArgument, "shape [3, 40960]");
  TensorBox outside = reference_->whole;
  outside.offset = {1};
  Room room(reference_->whole);
  room.box = outside;
  EXPECT_STATUS(RestoreOne(&room), absl::StatusCode::kInvalidArgument, "outside");
  room.box = reference_->whole;
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  RestoreRequest request;
  request.tensors = {{reference_->whole, nullptr}};
  EXPECT_STATUS(checkpoint->Restore(request), absl::StatusCode::kInvalidArgument, "null pointer");
}

TEST_F(RestoreTest, WhatNoRankStoredIsDataLost) {
  const std::vector<uint8_t> half(5, 1);
  State state;
  state.tensors.push_back({BoxIn(WholeTensor("w", ElementType::kU8, {10}), {0}, {5}), half.data()});
  SaveAll(1, {state});
  Room room(WholeTensor("w", ElementType::kU8, {10}));
  EXPECT_STATUS(RestoreOne(&room), absl::StatusCode::kDataLoss, "run test, step 1: tensor \"w\"");
}

// --- a server that is not to be believed
// ----------------------------------------------------------------------------

class RestoreDamage : public RestoreTest {
 protected:
  RestoreDamage() { SaveOne(); }

  void ExpectLoss(const std::string& text) {
    Room room(reference_->whole);
    const absl::Status status = RestoreOne(&room);
    EXPECT_STATUS(status, absl::StatusCode::kDataLoss, text);
    for (const char* place : {"run test, step 7", "rank 0", "tensor \"model.w\"", "chunk "}) {
      EXPECT_THAT(status.ToString(), ::testing::HasSubstr(place));
    }
    server_.SetTamper(nullptr);
    ExpectRestoresOne();
  }
};

TEST_F(RestoreDamage, AFlippedBitIsFoundByTheHash) {
  server_.SetTamper([](FakeServer::Outgoing* out) { out->stored[77] ^= 1; });
  ExpectLoss("its raw bytes have the hash");
}

TEST_F(RestoreDamage, AFlippedBitInAnEncodingIsFoundByTheCrc) {
  server_.SetTamper([](FakeServer::Outgoing* out) {
    out->info.codec = CodecId::kZstd;
    out->stored.resize(2000);
    out->info.stored_bytes = out->stored.size();
    out->info.stored_crc32c = Crc32c(AsBytes(out->stored));
    out->stored[77] ^= 1;
  });
  ExpectLoss("CRC-32C");
}

TEST_F(RestoreDamage, AnotherChunkIsNotTaken) {
  server_.SetTamper([](FakeServer::Outgoing* out) {
    out->stored.assign(100, 'x');
    out->info.raw_bytes = out->info.stored_bytes = 100;
    out->info.hash = HashOf(AsBytes(out->stored));
    out->info.stored_crc32c = Crc32c(AsBytes(out->stored));
  });
  ExpectLoss("the server sent chunk");
}

TEST_F(RestoreDamage, BadEncodingsAreRefused) {
  server_.SetTamper([](FakeServer::Outgoing* out) {
    out->info.codec = CodecId::kZstd;
    out->stored.resize(2000);
    out->info.stored_bytes = out->stored.size();
    out->info.stored_crc32c = Crc32c(AsBytes(out->stored));
  });
  ExpectLoss("zstd");
}

TEST_F(RestoreDamage, ALengthBeyondTheChunkIsRefused) {
  server_.SetTamper(
      [](FakeServer::Outgoing* out) { out->info.stored_bytes = out->info.raw_bytes = uint64_t{1} << 60; });
  ExpectLoss("GetChunks");
}

TEST_F(RestoreDamage, MoreBytesThanSaidAreRefused) {
  server_.SetTamper([](FakeServer::Outgoing* out) { out->stored += "more"; });
  ExpectLoss("found a message of 4100");
}

TEST_F(RestoreDamage, FewerBytesThanSaidAreRefused) {
  // The next chunk's head then stands where the body should go on.
  server_.SetTamper([](FakeServer::Outgoing* out) { out->stored.resize(4090); });
  ExpectLoss("GetChunks");
}

TEST_F(RestoreDamage, NonsenseInPlaceOfAHeadIsRefused) {
  server_.SetTamper([](FakeServer::Outgoing* out) {
    out->head = "nonsense that is long enough to be a frame, but is none";
  });
  ExpectLoss("frame");
}

TEST_F(RestoreDamage, AnAnswerToAnotherQuestionIsRefused) {
  server_.SetTamper([](FakeServer::Outgoing* out) { out->head = EncodeChunkFrame(12345, out->info); });
  ExpectLoss("12345");
}

TEST_F(RestoreDamage, AHeadOfManyMegabytesIsRefused) {
  server_.SetTamper([](FakeServer::Outgoing* out) { out->head = std::string(5 << 20, '\0'); });
  ExpectLoss("at most 4096 bytes");
}

TEST_F(RestoreDamage, TheServersOwnFindingIsPassedOn) {
  server_.LoseChunk(server_.PutHashes()[11]);
  Room room(reference_->whole);
  const absl::Status status = RestoreOne(&room);
  EXPECT_STATUS(status, absl::StatusCode::kDataLoss, "seg-7 at 4096: bad CRC");
  EXPECT_STATUS(status, absl::StatusCode::kDataLoss, "run test, step 7: rank 0, tensor \"model.w\", chunk ");
  // What does not need the chunk is not harmed.
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  ASSERT_OK_AND_ASSIGN(const std::string item, checkpoint->ReadItem(0, "rng"));
  EXPECT_EQ(item, "seed");
}

TEST_F(RestoreDamage, MetadataIsCheckedAgainstWhatRefersToIt) {
  const auto error_of = [&](Rpc which, std::function<void(std::string*)> change) {
    server_.SetEnvelopeTamper([which, change](Rpc rpc, std::string* envelope) {
      if (rpc == which) change(envelope);
    });
    Room room(reference_->whole);
    const absl::Status status = RestoreOne(&room);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    return status;
  };
  const auto flip = [](std::string* envelope) { envelope->back() ^= 1; };
  const auto other_rank = [](std::string* envelope) {
    v1::Part part = *DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, *envelope);
    part.set_rank(3);
    *envelope = EncodeEnvelope(EnvelopeKind::kPart, part);
  };
  const auto other_layout = [](std::string* envelope) {
    *envelope = EncodeEnvelope(EnvelopeKind::kLayout, v1::Layout());
  };
  EXPECT_STATUS(error_of(Rpc::kGetCheckpoint, flip), absl::StatusCode::kDataLoss, "manifest");
  EXPECT_STATUS(error_of(Rpc::kGetParts, flip), absl::StatusCode::kDataLoss, "part of rank 0");
  EXPECT_STATUS(error_of(Rpc::kGetParts, other_rank), absl::StatusCode::kDataLoss, "part of rank 0");
  EXPECT_STATUS(error_of(Rpc::kGetLayouts, flip), absl::StatusCode::kDataLoss, "layout");
  EXPECT_STATUS(error_of(Rpc::kGetLayouts, other_layout), absl::StatusCode::kDataLoss, "layout");
}

TEST_F(RestoreDamage, APartOfAnotherRankIsNotTakenThoughItsDigestMatches) {
  // The manifest names a part that says that it is another rank's: as if two had been mixed up when they were
  // sealed.
  State state;
  state.tensors.push_back({WholeTensor("w", ElementType::kU8, {8}), "01234567"});
  server_.SetPartTamper([](v1::Part* part) { part->set_rank(1); });
  SaveAll(8, {state});
  Room room(WholeTensor("w", ElementType::kU8, {8}));
  EXPECT_STATUS(RestoreOne(&room), absl::StatusCode::kDataLoss, "it is that of run test, step 8, rank 1");
}

// --- connections that break
// --------------------------------------------------------------------------------------------

TEST_F(RestoreTest, GoesOnAfterTheServerRestarts) {
  SaveOne();
  std::atomic<int> gets = 0;
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == Rpc::kGetChunk && when == When::kBefore && ++gets == 13) server_.Crash();  // leases go too
    return absl::OkStatus();
  });
  ExpectRestoresOne();
  EXPECT_LT(server_.WantedHashes().size(), 60u);
}

TEST_F(RestoreTest, GoesOnWithANewServerProcess) {
  SaveOne();
  server_.Stall(Rpc::kGetChunk);
  std::thread restarts([&] {
    server_.AwaitCalls(Rpc::kGetChunk, 1);
    server_.Stop();
    server_.Start();
  });
  ExpectRestoresOne();
  restarts.join();
}

TEST_F(RestoreTest, AServerThatGoesForGoodIsReportedInTime) {
  SaveOne();
  ReaderOptions options;
  options.server = server_.address();
  options.connect_timeout_ms = 300;
  ASSERT_OK_AND_ASSIGN(reader_, Reader::Open(options));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  server_.Stop();
  Room room(reference_->whole);
  RestoreRequest request;
  request.tensors = {room.target()};
  EXPECT_STATUS(checkpoint->Restore(request), absl::StatusCode::kUnavailable, server_.address());
}

TEST_F(RestoreTest, AServerThatStallsIsReportedInTime) {
  SaveOne();
  ReaderOptions options;
  options.server = server_.address();
  options.connect_timeout_ms = 200;
  ASSERT_OK_AND_ASSIGN(reader_, Reader::Open(options));
  server_.Stall(Rpc::kGetChunk);
  Room room(reference_->whole);
  EXPECT_STATUS(RestoreOne(&room), absl::StatusCode::kUnavailable, "no message in time");
  server_.Unstall();
}

TEST_F(RestoreTest, ALostLeaseIsTakenAnew) {
  SaveOne();
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
  EXPECT_EQ(server_.open_leases(), 1u);
  server_.DropLeases();
  Room room(reference_->whole);
  RestoreRequest request;
  request.tensors = {room.target()};
  ASSERT_OK(checkpoint->Restore(request));
  EXPECT_EQ(room.data, reference_->data);
  EXPECT_EQ(server_.open_leases(), 1u);
}

TEST_F(RestoreTest, TheLeaseIsRenewedAndGivenBack) {
  SaveOne();
  {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenLatest());
    server_.AwaitCalls(Rpc::kRenewRead, 2);
    EXPECT_EQ(server_.open_leases(), 1u);
  }
  EXPECT_EQ(server_.open_leases(), 0u);
}

TEST_F(RestoreTest, ACheckpointThatIsReplacedWhileItIsOpenedIsOpenedAnew) {
  SaveOne();
  std::atomic<bool> once = true;
  server_.SetHook([&](Rpc rpc, When when) {
    if (rpc == Rpc::kGetCheckpoint && when == When::kAfter && once.exchange(false)) {
      State state;
      state.tensors.push_back({WholeTensor("model.w", ElementType::kU8, {4}), "new!"});
      SaveAll(7, {state}, "second");
    }
    return absl::OkStatus();
  });
  Room room(WholeTensor("model.w", ElementType::kU8, {4}));
  ASSERT_OK(RestoreOne(&room));
  EXPECT_EQ(room.data, (std::vector<uint8_t>{'n', 'e', 'w', '!'}));
}

}  // namespace
}  // namespace esker::testing
