// What a crash leaves at any operation of the disk: while the store works, its directory is copied as it is
// just before an operation, and the copy is opened.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "format/base/text.h"
#include "format/segment_header.h"
#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

constexpr int kOperations = 120;
constexpr int kCrashes = 30;

// A save of one part.
using Saves = std::map<PartRef, std::vector<TestChunk>>;

class StoreCrashTest : public StoreTest {
 protected:
  // Copies the directory before every `interval`th operation that this thread waits for.
  void CrashEvery(uint64_t interval) {
    faults_.SetHook([this, interval, tester = std::this_thread::get_id()](const DiskEvent& event) {
      // What the store does of itself goes on while the copy is made; the tester stands still only during
      // operations that it waits for.
      const bool is_waited_for = std::this_thread::get_id() == tester || event.op == DiskOp::kSync;
      if (!is_waited_for || ++events_ % interval != 0 || copied_) return absl::OkStatus();
      // Copies with and without the holes in it: what is allocated differs, what is live does not.
      const std::string sparse = events_ % 2 == 0 ? "always" : "never";
      const std::string command = StrCat("cp -r --sparse=", sparse, " ", options_.directory, " ",
                                         directory_ / "copy", " 2>/dev/null");
      // Files that the store unlinks meanwhile are no loss.
      (void)!std::system(command.c_str());
      copied_ = true;
      return absl::OkStatus();
    });
  }

  // Some chunks are shared with other saves.
  std::vector<TestChunk> RandomChunks() {
    std::vector<TestChunk> chunks;
    for (uint64_t count = random_() % 6 + 1; count > 0; --count) {
      const uint64_t seed = random_() % 60;
      chunks.push_back(MakeChunk(seed, seed % 3 == 0 ? 3'000'000 : 70'000));
    }
    return chunks;
  }

  void Save(uint64_t step) {
    const PartRef part = MakePart(step);
    const std::vector<TestChunk> chunks = RandomChunks();
    ASSERT_OK(SavePart(store_.get(), part, chunks));
    CheckCopy({{part, chunks}});
    sealed_[part] = chunks;
  }

  void GiveUpSave(uint64_t step) {
    const PartRef part = MakePart(step);
    for (const TestChunk& chunk : RandomChunks()) ASSERT_OK(PutChunk(store_.get(), part, chunk));
    store_->EndSave(part.save);
    CheckCopy({});
  }

  void Remove() {
    const auto victim = std::next(sealed_.begin(), static_cast<std::ptrdiff_t>(random_() % sealed_.size()));
    ASSERT_OK(store_->RemoveSave(victim->first.save));
    CheckCopy({*victim});
    sealed_.erase(victim);
  }

  // If a copy was made during the last operation, which was about the part in doubt: opens it.
  void CheckCopy(const Saves& in_doubt) {
    if (!copied_) return;
    ++crashes_;
    const Saves& acknowledged = sealed_;
    StoreOptions options = options_;
    options.directory = directory_ / "copy";
    absl::StatusOr<std::unique_ptr<Store>> copy = Store::Open(options);
    ASSERT_OK(copy);
    ASSERT_OK((*copy)->CheckConsistency());
    for (const auto& [part, chunks] : acknowledged) {
      if (!in_doubt.contains(part)) ASSERT_OK(CheckPart(copy->get(), part, chunks));
    }
    ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> saves, (*copy)->ListSaves());
    for (const SaveRef& save : saves) {
      const PartRef part{.save = save, .attempt = 1, .rank = 0};
      const auto known = acknowledged.contains(part) ? acknowledged.find(part) : in_doubt.find(part);
      ASSERT_TRUE(known != in_doubt.end()) << "a part that nobody sealed: step " << save.step;
      ASSERT_OK(CheckPart(copy->get(), part, known->second));
    }
    // It goes on from there.
    const PartRef next = MakePart(1'000'000);
    ASSERT_OK(SavePart(copy->get(), next, MakeChunks(7'000'000, 3, 1'000'000)));
    ASSERT_OK(CheckPart(copy->get(), next, MakeChunks(7'000'000, 3, 1'000'000)));
    for (const auto& [part, chunks] : acknowledged) {
      if (!in_doubt.contains(part)) ASSERT_OK(CheckPart(copy->get(), part, chunks));
    }
    ASSERT_OK((*copy)->CheckConsistency());
    copy->reset();
    std::filesystem::remove_all(options.directory);
    copied_ = false;
  }

  std::mt19937_64 random_{TestSeed()};
  Saves sealed_;
  int crashes_ = 0;
  std::atomic<uint64_t> events_ = 0;
  std::atomic<bool> copied_ = false;
};

TEST_F(StoreCrashTest, AnyDiskOperationMayBeTheLast) {
  options_.recycle_bytes = 32 * kMiB;
  Open();
  CrashEvery(1 + random_() % 7);
  for (int i = 0; i < kOperations && crashes_ < kCrashes; ++i) {
    SCOPED_TRACE(i);
    const bool save = sealed_.size() < 3 || random_() % 5 < 3;
    if (save && random_() % 6 == 0) {
      GiveUpSave(static_cast<uint64_t>(i));
    } else if (save) {
      Save(static_cast<uint64_t>(i));
    } else {
      Remove();
    }
    ASSERT_NO_FATAL_FAILURE();
  }
  EXPECT_GE(crashes_, 10);
  ASSERT_OK(store_->CheckConsistency());
}

TEST_F(StoreCrashTest, TheStockMayBeHalfMade) {
  options_.recycle_bytes = 32 * kMiB;
  Open();
  Save(1);
  const uint64_t synced = faults_.count(DiskOp::kSync);
  std::vector<std::string> copies;
  faults_.SetHook([&](const DiskEvent& event) {
    if (event.op == DiskOp::kWrite && event.offset > kFirstRecordOffset && random_() % 4 != 0)
      return absl::OkStatus();
    copies.push_back(directory_ / StrCat("copy", copies.size()));
    EXPECT_EQ(std::system(StrCat("cp -r ", options_.directory, " ", copies.back()).c_str()), 0);
    return absl::OkStatus();
  });
  clock_.Advance(1000);
  while (faults_.count(DiskOp::kSync) < synced + 2) std::this_thread::yield();
  ASSERT_OK(store_->CheckConsistency());  // waits for the last step
  faults_.SetHook(nullptr);
  EXPECT_GE(copies.size(), 10u);
  for (const std::string& copy : copies) {
    SCOPED_TRACE(copy);
    std::filesystem::rename(copy, directory_ / "copy");
    copied_ = true;
    CheckCopy({});
    ASSERT_NO_FATAL_FAILURE();
  }
}

}  // namespace
}  // namespace esker::testing
