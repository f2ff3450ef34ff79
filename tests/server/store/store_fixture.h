// What the store's tests share: a store in a directory of its own that can be closed and opened again, and
// parts made of random chunks.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/store/store.h"
#include "tests/server/store/fault_disk.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace esker::testing {

inline constexpr uint64_t kMiB = 1 << 20;

// A chunk with its raw bytes, stored raw unless there are other stored bytes.
struct TestChunk {
  std::string raw;
  ChunkInfo info;
  std::string encoded{};

  ByteView stored() const { return AsBytes(encoded.empty() ? raw : encoded); }
  // As a client gets it.
  ChunkInfo read_info() const;
  const Hash128& hash() const { return info.hash; }
  uint64_t record_bytes() const { return RecordBytes(info.stored_bytes); }
};

// The same content for the same seed and length.
TestChunk MakeChunk(uint64_t seed, uint64_t bytes);
std::vector<TestChunk> MakeChunks(uint64_t first_seed, int count, uint64_t bytes);

// A chunk that differs a little from `base`, and the same stored as a delta of it.
TestChunk MakeVariant(const TestChunk& base, uint64_t seed);
TestChunk AsDeltaOf(const TestChunk& base, const TestChunk& chunk);

std::vector<Hash128> HashesOf(const std::vector<TestChunk>& chunks);

// What a client sends to seal a part of these chunks: one byte item, cut into them.
struct TestEnvelopes {
  std::string part;
  std::string layout;
};
TestEnvelopes EncodePart(const PartRef& part, const std::vector<TestChunk>& chunks,
                         const std::string& item_name = "blob");

PartRef MakePart(uint64_t step, uint32_t rank = 0, uint64_t save_id = 0x5a7e);

// The steps of a client, each waiting for its end.
absl::Status PutChunk(Store* store, const PartRef& part, const TestChunk& chunk);
absl::StatusOr<SealResult> SealChunks(Store* store, const PartRef& part,
                                      const std::vector<TestChunk>& chunks);
// Offer, put what is missing, seal; again if the seal says that something is missing.
absl::StatusOr<SealResult> SavePart(Store* store, const PartRef& part, const std::vector<TestChunk>& chunks);
ChunkReadOr ReadRecord(Store* store, const Hash128& hash, ReadMode mode = ReadMode::kFromDisk);
// OK if the part is there and each chunk reads back bit for bit.
absl::Status CheckPart(Store* store, const PartRef& part, const std::vector<TestChunk>& chunks);

// st_blocks of the files in a directory.
uint64_t DiskBytesOf(const std::string& directory);
uint64_t FilesIn(const std::string& directory);

class StoreTest : public ::testing::Test {
 protected:
  StoreTest();

  // Opens the store on the real disk with `faults` in front.
  absl::Status TryOpen();
  void Open();
  void Close() { store_ = nullptr; }
  // What a crash would leave, but for what only the page cache holds: unsealed parts are forgotten.
  void Reopen();

  std::string segments_path() const { return directory_ / "store/segments"; }
  uint64_t SegmentDiskBytes() const { return DiskBytesOf(segments_path()); }

  TempDir directory_;
  FakeClock clock_;
  DiskFaults faults_;
  StoreOptions options_;
  rocksdb::Env* index_env_ = nullptr;
  std::unique_ptr<Store> store_;
};

}  // namespace esker::testing
