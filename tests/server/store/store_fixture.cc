#include "tests/server/store/store_fixture.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <random>
#include <utility>

#include "format/delta.h"
#include "format/envelope.h"
#include "format/layout.h"

namespace esker::testing {

TestChunk MakeChunk(uint64_t seed, uint64_t bytes) {
  TestChunk chunk;
  chunk.raw.resize(bytes);
  std::mt19937_64 random(seed);
  for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(chunk.raw.data() + at, &word, std::min<uint64_t>(sizeof(word), bytes - at));
  }
  const ByteView raw = AsBytes(chunk.raw);
  chunk.info = {.hash = HashOf(raw),
                .codec = CodecId::kRaw,
                .dtype = DType::kBytes,
                .raw_bytes = bytes,
                .stored_bytes = bytes,
                .stored_crc32c = Crc32c(raw)};
  return chunk;
}

ChunkInfo TestChunk::read_info() const {
  ChunkInfo read = info;
  if (info.codec != CodecId::kDelta) return read;
  read.codec = CodecId::kRaw;
  read.stored_bytes = raw.size();
  read.stored_crc32c = Crc32c(AsBytes(raw));
  return read;
}

TestChunk MakeVariant(const TestChunk& base, uint64_t seed) {
  TestChunk chunk = base;
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20; ++i)
    chunk.raw[random() % chunk.raw.size()] ^= static_cast<char>(1 + random() % 255);
  chunk.info.hash = HashOf(AsBytes(chunk.raw));
  chunk.info.stored_crc32c = Crc32c(AsBytes(chunk.raw));
  return chunk;
}

TestChunk AsDeltaOf(const TestChunk& base, const TestChunk& chunk) {
  TestChunk delta = chunk;
  std::vector<std::byte> encoded;
  const Codec& codec = *FindCodec(CodecId::kPlanes);
  ESKER_CHECK(
      EncodeDelta(codec, AsBytes(chunk.raw), AsBytes(base.raw), base.hash(), chunk.info.dtype, &encoded));
  delta.encoded = AsText(encoded);
  delta.info.codec = CodecId::kDelta;
  delta.info.stored_bytes = encoded.size();
  delta.info.stored_crc32c = Crc32c(encoded);
  return delta;
}

std::vector<TestChunk> MakeChunks(uint64_t first_seed, int count, uint64_t bytes) {
  std::vector<TestChunk> chunks;
  for (int i = 0; i < count; ++i) chunks.push_back(MakeChunk(first_seed + i, bytes));
  return chunks;
}

std::vector<Hash128> HashesOf(const std::vector<TestChunk>& chunks) {
  std::vector<Hash128> hashes;
  for (const TestChunk& chunk : chunks) hashes.push_back(chunk.hash());
  return hashes;
}

TestEnvelopes EncodePart(const PartRef& part, const std::vector<TestChunk>& chunks,
                         const std::string& item_name) {
  absl::StatusOr<v1::Layout> layout = BuildLayout({}, {item_name}, kMaxChunkBytes);
  ESKER_CHECK(layout.ok());
  TestEnvelopes envelopes;
  envelopes.layout = EncodeEnvelope(EnvelopeKind::kLayout, *layout);
  v1::Part message;
  message.set_run(part.save.run);
  message.set_step(part.save.step);
  message.set_attempt(part.attempt);
  message.set_save_id(part.save.save_id);
  message.set_rank(part.rank);
  message.set_layout_digest(std::string(HashOf(AsBytes(envelopes.layout)).AsText()));
  uint64_t raw_bytes = 0;
  for (const TestChunk& chunk : chunks) {
    message.mutable_chunk_hashes()->append(chunk.hash().AsText());
    message.add_item_chunk_raw_bytes(chunk.info.raw_bytes);
    raw_bytes += chunk.info.raw_bytes;
  }
  message.add_item_bytes(raw_bytes);
  message.set_raw_bytes(raw_bytes);
  envelopes.part = EncodeEnvelope(EnvelopeKind::kPart, message);
  return envelopes;
}

PartRef MakePart(uint64_t step, uint32_t rank, uint64_t save_id) {
  return {.save = {.run = "run", .step = step, .save_id = save_id}, .attempt = 1, .rank = rank};
}

absl::Status PutChunk(Store* store, const PartRef& part, const TestChunk& chunk) {
  Buffer record = store->buffers()->Acquire(chunk.record_bytes());
  std::fill(record.bytes().begin(), record.bytes().end(), std::byte{0xee});  // what the last user left
  const ByteView stored = chunk.stored();
  std::copy(stored.begin(), stored.end(), record.data() + PayloadOffset(stored.size()));
  std::promise<absl::Status> done;
  store->Put(part, chunk.info, std::move(record),
             [&](absl::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

absl::StatusOr<SealResult> SealChunks(Store* store, const PartRef& part,
                                      const std::vector<TestChunk>& chunks) {
  const TestEnvelopes envelopes = EncodePart(part, chunks);
  return store->Seal(part, envelopes.part, envelopes.layout);
}

absl::StatusOr<SealResult> SavePart(Store* store, const PartRef& part, const std::vector<TestChunk>& chunks) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<bool> missing, store->Offer(part, HashesOf(chunks)));
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (missing[i]) ESKER_RETURN_IF_ERROR(PutChunk(store, part, chunks[i]));
  }
  ESKER_ASSIGN_OR_RETURN(SealResult result, SealChunks(store, part, chunks));
  if (result.missing.empty()) return result;
  for (const TestChunk& chunk : chunks) {
    const bool is_missing =
        std::find(result.missing.begin(), result.missing.end(), chunk.hash()) != result.missing.end();
    if (is_missing) ESKER_RETURN_IF_ERROR(PutChunk(store, part, chunk));
  }
  return SealChunks(store, part, chunks);
}

ChunkReadOr ReadRecord(Store* store, const Hash128& hash, ReadMode mode) {
  std::promise<ChunkReadOr> done;
  store->ReadChunk(hash, mode, [&](ChunkReadOr read) { done.set_value(std::move(read)); });
  return done.get_future().get();
}

absl::Status CheckPart(Store* store, const PartRef& part, const std::vector<TestChunk>& chunks) {
  ESKER_ASSIGN_OR_RETURN(const StoredPart stored, store->GetPart(part.save, part.rank));
  if (stored.ref != part) return absl::InternalError("it is another part");
  if (stored.envelope != EncodePart(part, chunks).part) return absl::InternalError("its envelope differs");
  for (const TestChunk& chunk : chunks) {
    ESKER_ASSIGN_OR_RETURN(const std::shared_ptr<const ChunkRead> read, ReadRecord(store, chunk.hash()));
    if (read->info != chunk.read_info()) return absl::InternalError("a chunk's info differs");
    if (AsText(read->stored()) != chunk.raw) return absl::InternalError("a chunk's bytes differ");
  }
  return absl::OkStatus();
}

uint64_t DiskBytesOf(const std::string& directory) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    struct stat info;
    ESKER_CHECK(::stat(entry.path().c_str(), &info) == 0);
    bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

uint64_t FilesIn(const std::string& directory) {
  const std::filesystem::directory_iterator entries(directory);
  return static_cast<uint64_t>(std::distance(begin(entries), end(entries)));
}

StoreTest::StoreTest() {
  options_.directory = directory_ / "store";
  options_.segment_bytes = 16 * kMiB;
  options_.buffer_pool_bytes = 24 * kMiB;
  options_.clock = &clock_;
}

absl::Status StoreTest::TryOpen() {
  std::filesystem::create_directories(segments_path());
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<Disk> disk, OpenDisk(segments_path(), options_.engine));
  ESKER_ASSIGN_OR_RETURN(store_, Store::Open(options_, MakeFaultDisk(std::move(disk), &faults_), index_env_));
  return absl::OkStatus();
}

void StoreTest::Open() { ASSERT_OK(TryOpen()); }

void StoreTest::Reopen() {
  Close();
  Open();
}

}  // namespace esker::testing
