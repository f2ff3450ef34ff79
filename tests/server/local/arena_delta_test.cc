// Saves out of an arena that are stored as deltas of an earlier one, and clients that say wrong things about
// it.
#include <algorithm>
#include <future>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "format/codec.h"
#include "server/local/arena_save.h"
#include "tests/server/local/local_fixture.h"

namespace esker::testing {
namespace {

constexpr uint64_t kWholeBytes = 3 * kChunkBytes;
constexpr uint64_t kLittle = kChunkBytes / 4;  // deltas take less
// Where saves lie in the arena.
constexpr uint64_t kFirst = 0;
constexpr uint64_t kSecond = 128 << 10;
constexpr uint64_t kThird = 256 << 10;

// The chunks of a part.
using Content = std::vector<std::string>;

// Bytes that no codec makes smaller.
Content MakeContent(uint64_t seed, size_t chunks = 3, uint64_t bytes = kChunkBytes) {
  std::mt19937_64 random(seed);
  Content content(chunks, std::string(bytes, '\0'));
  for (std::string& chunk : content) {
    for (char& byte : chunk) byte = static_cast<char>(random());
  }
  return content;
}

// The same but for some bits in each chunk.
Content Changed(Content content, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (std::string& chunk : content) {
    for (int i = 0; i < 50; ++i) chunk[random() % chunk.size()] ^= 1;
  }
  return content;
}

class ArenaDelta : public LocalServerTest {
 protected:
  void SetUp() override {
    LocalServerTest::SetUp();
    client_ = Client();
  }

  v1::ArenaSave DeltaOf(uint64_t step, uint64_t records_offset,
                        std::optional<uint64_t> base_offset = std::nullopt) {
    v1::ArenaSave save = SaveOf(step);
    save.set_codec(static_cast<uint32_t>(CodecId::kDelta));
    save.set_records_offset(records_offset);
    if (base_offset.has_value()) save.set_base_offset(*base_offset);
    return save;
  }

  void Write(uint64_t records_offset, const Content& content) {
    for (const std::string& chunk : content) {
      std::memcpy(client_->bytes() + records_offset + PayloadOffset(chunk.size()), chunk.data(),
                  chunk.size());
      records_offset += RecordBytes(chunk.size());
    }
  }
  // Whatever the client says of it.
  v1::LocalAnswer Send(const v1::ArenaSave& save, uint64_t chunks = 3) {
    client_->SendSave(save);
    client_->SendReady(chunks);
    return client_->AwaitEnd();
  }
  // Saves the content; returns how many bytes were written for it. It must come back as it is.
  uint64_t Save(const v1::ArenaSave& save, const Content& content) {
    Write(save.records_offset(), content);
    const v1::LocalAnswer end = Send(save, content.size());
    EXPECT_TRUE(end.has_sealed()) << end.ShortDebugString();
    ExpectHolds(save.step(), content);
    uint64_t raw_bytes = 0;
    for (const std::string& chunk : content) raw_bytes += chunk.size();
    EXPECT_EQ(end.sealed().progress().processed_bytes(), raw_bytes);
    last_codec_ = static_cast<CodecId>(end.sealed().entry().codec());
    return end.sealed().progress().written_bytes();
  }

  void ExpectHolds(uint64_t step, const Content& content) {
    const absl::StatusOr<StoredPart> stored = store_->GetPart(Committed(step), 0);
    ASSERT_OK(stored);
    const absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, stored->envelope);
    ASSERT_OK(part);
    std::string hashes;
    for (const std::string& chunk : content) hashes += HashOf(AsBytes(chunk)).AsText();
    EXPECT_EQ(part->chunk_hashes(), hashes);
    for (const std::string& chunk : content) ExpectReads(chunk);
    EXPECT_OK(store_->CheckConsistency());
  }
  void ExpectReads(const std::string& raw) {
    std::promise<ChunkReadOr> read;
    store_->ReadChunk(HashOf(AsBytes(raw)), ReadMode::kFromDisk,
                      [&](ChunkReadOr chunk) { read.set_value(std::move(chunk)); });
    const ChunkReadOr chunk = read.get_future().get();
    ASSERT_OK(chunk);
    std::vector<std::byte> decoded((*chunk)->info.raw_bytes);
    ASSERT_OK(FindCodec((*chunk)->info.codec)->decode((*chunk)->stored(), (*chunk)->info.dtype, decoded));
    EXPECT_TRUE(AsText(decoded) == raw);
  }

  std::unique_ptr<LocalClient> client_;
  CodecId last_codec_ = CodecId::kRaw;  // what the last save's entry says
};

TEST_F(ArenaDelta, StoresWhatHasChanged) {
  const Content base = MakeContent(1);
  EXPECT_EQ(Save(DeltaOf(1, kFirst), base), kWholeBytes);
  EXPECT_EQ(last_codec_, CodecId::kPlanes);
  for (uint64_t step = 2; step <= 4; ++step) {
    EXPECT_LT(Save(DeltaOf(step, kSecond, kFirst), Changed(base, step)), kLittle);
    EXPECT_EQ(last_codec_, CodecId::kDelta);
  }
  ExpectHolds(1, base);
}

TEST_F(ArenaDelta, ANewBaseMayLieAnywhereElse) {
  const Content first = MakeContent(1);
  Save(DeltaOf(1, kFirst), first);
  const Content second = MakeContent(2);
  EXPECT_EQ(Save(DeltaOf(2, kSecond), second), kWholeBytes);
  EXPECT_LT(Save(DeltaOf(3, kFirst, kSecond), Changed(second, 3)), kLittle);
  EXPECT_LT(Save(DeltaOf(4, kThird, kSecond), Changed(second, 4)), kLittle);
}

TEST_F(ArenaDelta, WithoutABaseWhereTheClientSaysIsStoredWhole) {
  uint64_t step = 0;
  for (const uint64_t lie : {kSecond, kThird, kFirst + 4096, uint64_t{1}, kArenaBytes, ~uint64_t{0}}) {
    step += 3;
    const Content base = MakeContent(step);
    Save(DeltaOf(step, kFirst), base);
    EXPECT_EQ(Save(DeltaOf(step + 1, kSecond, lie), Changed(base, 1)), kWholeBytes) << lie;
    EXPECT_EQ(last_codec_, CodecId::kPlanes);
    // And this one is a base itself.
    EXPECT_LT(Save(DeltaOf(step + 2, kThird, kSecond), Changed(base, 2)), kLittle) << lie;
  }
}

TEST_F(ArenaDelta, OnTheBaseItselfIsStoredWhole) {
  uint64_t step = 0;
  const uint64_t part_bytes = 3 * RecordBytes(kChunkBytes);
  for (const uint64_t overlapping :
       {kSecond, kSecond - 4096, kSecond + 4096, kSecond + part_bytes - 4096, kSecond - part_bytes + 4096}) {
    step += 2;
    const Content base = MakeContent(step);
    Save(DeltaOf(step, kSecond), base);
    EXPECT_EQ(Save(DeltaOf(step + 1, overlapping, kSecond), Changed(base, 1)), kWholeBytes) << overlapping;
    EXPECT_EQ(last_codec_, CodecId::kPlanes);
  }
  // Right behind and right before it is not on it.
  const Content base = MakeContent(200);
  Save(DeltaOf(200, kSecond), base);
  EXPECT_LT(Save(DeltaOf(201, kSecond + part_bytes, kSecond), Changed(base, 1)), kLittle);
  EXPECT_LT(Save(DeltaOf(202, kSecond - part_bytes, kSecond), Changed(base, 2)), kLittle);
}

TEST_F(ArenaDelta, OfBytesThatTheClientHasChangedIsStoredWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  const uint64_t second_chunk = kFirst + RecordBytes(kChunkBytes) + PayloadOffset(kChunkBytes);
  client_->bytes()[second_chunk + kChunkBytes - 1] ^= std::byte{1};
  const uint64_t written = Save(DeltaOf(2, kSecond, kFirst), Changed(base, 2));
  EXPECT_GE(written, kChunkBytes);
  EXPECT_LT(written, kChunkBytes + kLittle);

  std::memset(client_->bytes(), 0, 3 * RecordBytes(kChunkBytes));
  EXPECT_EQ(Save(DeltaOf(3, kSecond, kFirst), Changed(base, 3)), kWholeBytes);
  ExpectHolds(1, base);
}

TEST_F(ArenaDelta, RecordsOutsideTheArenaAreRefused) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  for (const uint64_t offset : {uint64_t{1}, kSecond + 512, kArenaBytes - 4096, kArenaBytes,
                                kArenaBytes + 4096, ~uint64_t{0}, ~uint64_t{0} - 4095}) {
    const v1::LocalAnswer end = Send(DeltaOf(2, offset, kFirst));
    ASSERT_TRUE(end.has_failed()) << offset;
    EXPECT_EQ(end.failed().code(), static_cast<uint32_t>(absl::StatusCode::kInvalidArgument)) << offset;
    EXPECT_NE(end.failed().message().find("arena"), std::string::npos) << end.failed().message();
  }
  EXPECT_EQ(Steps(), "1");
  EXPECT_LT(Save(DeltaOf(2, kSecond, kFirst), Changed(base, 2)), kLittle) << "the base is still there";
}

TEST_F(ArenaDelta, OfAnotherTypeIsStoredWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  v1::ArenaSave save = DeltaOf(2, kSecond, kFirst);
  const std::vector<ShardSpec> shards = {{"w", DType::kF32, {kWholeBytes / 4}, WholeBox({kWholeBytes / 4})}};
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout, BuildLayout(shards, {}, kChunkBytes));
  ASSERT_EQ(layout.chunk_raw_bytes_size(), 3);
  save.set_layout_envelope(EncodeEnvelope(EnvelopeKind::kLayout, layout));
  EXPECT_EQ(Save(save, Changed(base, 2)), kWholeBytes);
}

TEST_F(ArenaDelta, ChunksOfAnotherLengthAreStoredWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  // The last chunk is shorter, and there is one more.
  Content other = Changed(base, 2);
  other[2].resize(kChunkBytes - 1000);
  other.push_back(MakeContent(3)[0].substr(0, 5000));
  v1::ArenaSave save = DeltaOf(2, kSecond, kFirst);
  const uint64_t tensor_bytes = kWholeBytes - 1000;
  const std::vector<ShardSpec> shards = {{"w", DType::kU8, {tensor_bytes}, WholeBox({tensor_bytes})}};
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout, BuildLayout(shards, {"item"}, kChunkBytes));
  save.set_layout_envelope(EncodeEnvelope(EnvelopeKind::kLayout, layout));
  save.add_item_bytes(5000);
  save.add_item_chunk_raw_bytes(5000);
  const uint64_t written = Save(save, other);
  EXPECT_GE(written, kChunkBytes + 4000);
  EXPECT_LT(written, kChunkBytes + 4000 + kLittle);
  // Fewer than the base has.
  const std::vector<ShardSpec> one = {{"w", DType::kU8, {kChunkBytes}, WholeBox({kChunkBytes})}};
  ASSERT_OK_AND_ASSIGN(const v1::Layout less, BuildLayout(one, {}, kChunkBytes));
  v1::ArenaSave first_only = DeltaOf(3, kSecond, kFirst);
  first_only.set_layout_envelope(EncodeEnvelope(EnvelopeKind::kLayout, less));
  EXPECT_LT(Save(first_only, {Changed(base, 3)[0]}), kLittle);
}

TEST_F(ArenaDelta, OfAnotherConnectionIsStoredWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  client_ = Client();
  Write(kFirst, base);
  EXPECT_EQ(Save(DeltaOf(2, kSecond, kFirst), Changed(base, 2)), kWholeBytes);
}

TEST_F(ArenaDelta, OnlyWithItsCodec) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  v1::ArenaSave save = DeltaOf(2, kSecond, kFirst);
  save.set_codec(static_cast<uint32_t>(CodecId::kPlanes));
  EXPECT_EQ(Save(save, Changed(base, 2)), kWholeBytes);
  EXPECT_EQ(last_codec_, CodecId::kPlanes);
  save = DeltaOf(3, kThird, kSecond);
  EXPECT_EQ(Save(save, Changed(base, 3)), kWholeBytes) << "a save with another codec is no base";
}

// No client asks for both.
TEST_F(ArenaDelta, AndAChoiceOfCodecsGoTogether) {
  const Content base = MakeContent(1);
  for (uint64_t step = 1; step <= 4; ++step) {
    v1::ArenaSave save = step == 1 ? DeltaOf(1, kFirst) : DeltaOf(step, kSecond, kFirst);
    save.set_choose_codec(true);
    EXPECT_LE(Save(save, Changed(base, step)), kWholeBytes);
  }
}

TEST_F(ArenaDelta, AFailedSaveLeavesTheBase) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  Write(kSecond, MakeContent(2));
  EXPECT_TRUE(Send(DeltaOf(2, kSecond, kFirst), 4).has_failed());  // more than there are
  EXPECT_TRUE(Send(DeltaOf(2, kSecond), 4).has_failed());          // nor does it become one
  EXPECT_LT(Save(DeltaOf(3, kThird, kFirst), Changed(base, 3)), kLittle);
}

TEST_F(ArenaDelta, OfARemovedBaseIsStoredWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  ASSERT_OK(store_->RemoveSave(Committed(1)).status());
  const Content changed = Changed(base, 2);
  EXPECT_EQ(Save(DeltaOf(2, kSecond, kFirst), changed), kWholeBytes);
  EXPECT_EQ(last_codec_, CodecId::kPlanes);
  // And so it is a base.
  EXPECT_LT(Save(DeltaOf(3, kFirst, kSecond), Changed(changed, 3)), kLittle);
  EXPECT_EQ(last_codec_, CodecId::kDelta);
}

// Some of the base's chunks are held by others.
TEST_F(ArenaDelta, OfABaseThatIsPartlyRemovedIsStoredPartlyWhole) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  Content second = Changed(base, 2);
  second[1] = MakeContent(2)[1];  // has nothing to do with the base's
  const uint64_t written = Save(DeltaOf(2, kSecond, kFirst), second);
  EXPECT_GE(written, kChunkBytes);
  EXPECT_LT(written, kChunkBytes + kLittle);
  ASSERT_OK(store_->RemoveSave(Committed(1)).status());
  const uint64_t third = Save(DeltaOf(3, kThird, kFirst), Changed(base, 3));
  EXPECT_GE(third, kChunkBytes);
  EXPECT_LT(third, kChunkBytes + kLittle);
  EXPECT_EQ(last_codec_, CodecId::kDelta);
}

TEST_F(ArenaDelta, KeepsTheBaseOfARemovedSave) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  EXPECT_LT(Save(DeltaOf(2, kSecond, kFirst), Changed(base, 2)), kLittle);
  ASSERT_OK(store_->RemoveSave(Committed(1)).status());
  EXPECT_LT(Save(DeltaOf(3, kSecond, kFirst), Changed(base, 3)), kLittle);
  ASSERT_OK(store_->RemoveSave(Committed(2)).status());
  ExpectHolds(3, Changed(base, 3));
  ASSERT_OK(store_->RemoveSave(Committed(3)).status());
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
  EXPECT_EQ(stats.chunks, 0u);
}

TEST_F(ArenaDelta, ChangesToTheBaseWhileItIsReadHarmOnlyWhoMakesThem) {
  const Content base = MakeContent(1);
  Save(DeltaOf(1, kFirst), base);
  for (uint64_t step = 2; step <= 6; ++step) {
    Write(kFirst, base);
    Write(kSecond, Changed(base, step));
    client_->SendSave(DeltaOf(step, kSecond, kFirst));
    client_->SendReady(3);
    for (uint64_t i = 0; i < 200; ++i) Write(kFirst, Changed(base, i));
    const v1::LocalAnswer end = client_->AwaitEnd();
    EXPECT_TRUE(end.has_sealed() || end.has_failed());
  }
  ExpectHolds(1, base);
  ExpectServing(7);
}

}  // namespace
}  // namespace esker::testing
