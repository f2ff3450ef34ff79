// Random operations and restarts against a model in memory. Seeded: see tests/testing/seed.h.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "server/store/store.h"
#include "tests/server/store/store_fixture.h"
#include "tests/testing/seed.h"

namespace esker::testing {
namespace {

constexpr int kSteps = 600;
constexpr uint64_t kFewDeltas = 20;
constexpr uint64_t kChunkSeeds = 80;
constexpr uint64_t kSaves = 8;
constexpr uint32_t kRanks = 3;

class StoreModelTest : public StoreTest {
 protected:
  PartRef RandomPart() {
    return MakePart(random_() % kSaves, static_cast<uint32_t>(random_() % kRanks), save_id_);
  }
  TestChunk RandomChunk() {
    const uint64_t seed = random_() % kChunkSeeds;
    return seed < kChunkSeeds / 2 ? Whole(seed) : MakeVariant(Whole(seed - kChunkSeeds / 2), seed);
  }
  // Each name has one length: from some bytes to more than a megabyte.
  static TestChunk Whole(uint64_t seed) {
    return MakeChunk(seed, 1'000 + (seed * seed * 7919) % (seed % 7 == 0 ? 1'500'000 : 90'000));
  }
  // What a delta of this chunk has as its base: nothing for a half of the chunks.
  std::optional<TestChunk> BaseOf(const TestChunk& chunk) const {
    for (uint64_t seed = 0; seed < kChunkSeeds / 2; ++seed) {
      const TestChunk whole = Whole(seed);
      if (MakeVariant(whole, seed + kChunkSeeds / 2).hash() == chunk.hash()) return whole;
    }
    return std::nullopt;
  }
  std::vector<TestChunk> RandomChunks() {
    std::vector<TestChunk> chunks(random_() % 7);
    for (TestChunk& chunk : chunks) chunk = RandomChunk();
    return chunks;
  }

  // The store must hold a chunk that a sealed part names or that this part put or was told is held.
  bool MustHold(const PartRef& part, const Hash128& hash) const {
    const auto pinned = pinned_.find(part);
    if (pinned != pinned_.end() && pinned->second.contains(hash)) return true;
    return IsSealed(hash);
  }

  void DoOffer() {
    const PartRef part = RandomPart();
    const std::vector<TestChunk> chunks = RandomChunks();
    ASSERT_OK_AND_ASSIGN(const std::vector<bool> missing, store_->Offer(part, HashesOf(chunks)));
    for (size_t i = 0; i < chunks.size(); ++i) {
      ASSERT_FALSE(missing[i] && MustHold(part, chunks[i].hash()));
      if (!missing[i]) pinned_[part].insert(chunks[i].hash());
    }
  }

  void DoPut() {
    const PartRef part = RandomPart();
    const TestChunk chunk = RandomChunk();
    ASSERT_NO_FATAL_FAILURE(PutSomehow(part, chunk));
    pinned_[part].insert(chunk.hash());
  }

  // Whole, or as a delta if the store has its base.
  void PutSomehow(const PartRef& part, const TestChunk& chunk) {
    const std::optional<TestChunk> base =
        bases_.contains(chunk.hash()) ? bases_[chunk.hash()] : BaseOf(chunk);
    bases_[chunk.hash()] = base;
    if (base.has_value() && random_() % 3 > 0) {
      const absl::Status status = PutChunk(store_.get(), part, AsDeltaOf(*base, chunk));
      if (status.ok()) {
        ++deltas_;
        return;
      }
      ASSERT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      ASSERT_FALSE(IsSealed(base->hash())) << status;
    }
    ASSERT_OK(PutChunk(store_.get(), part, chunk));
  }

  bool IsSealed(const Hash128& hash) const {
    return std::any_of(sealed_.begin(), sealed_.end(), [&](const auto& entry) {
      const std::vector<Hash128> hashes = HashesOf(entry.second);
      return std::find(hashes.begin(), hashes.end(), hash) != hashes.end();
    });
  }

  void DoSeal() {
    const PartRef part = RandomPart();
    const std::vector<TestChunk> chunks = RandomChunks();
    const bool was_sealed = sealed_.contains(part);
    if (random_() % 2 == 0 && !was_sealed) {
      for (const TestChunk& chunk : chunks) {
        ASSERT_NO_FATAL_FAILURE(PutSomehow(part, chunk));
        pinned_[part].insert(chunk.hash());
      }
    }
    const absl::StatusOr<SealResult> result = SealChunks(store_.get(), part, chunks);
    if (was_sealed && HashesOf(sealed_[part]) != HashesOf(chunks)) {
      ASSERT_EQ(result.status().code(), absl::StatusCode::kAlreadyExists) << result.status();
      return;
    }
    ASSERT_OK(result);
    for (const Hash128& hash : result->missing) ASSERT_FALSE(MustHold(part, hash));
    if (result->missing.empty()) {
      sealed_[part] = chunks;
      pinned_.erase(part);
      return;
    }
    for (const TestChunk& chunk : chunks) {
      const bool missing = std::count(result->missing.begin(), result->missing.end(), chunk.hash()) > 0;
      if (!missing) pinned_[part].insert(chunk.hash());
    }
  }

  void DoEndSave() {
    const SaveRef save = RandomPart().save;
    store_->EndSave(save);
    std::erase_if(pinned_, [&](const auto& entry) { return entry.first.save == save; });
  }

  void DoRemoveSave() {
    const SaveRef save = RandomPart().save;
    ASSERT_OK_AND_ASSIGN(const RemovedSpace removed, store_->RemoveSave(save));
    const size_t before = sealed_.size();
    std::erase_if(sealed_, [&](const auto& entry) { return entry.first.save == save; });
    ASSERT_EQ(removed.parts, before - sealed_.size());
    ++save_id_;  // a save that was removed is never saved again under its name
    RemoveOthers();
  }

  // With the new save id, the parts of older saves stay until they are removed.
  void RemoveOthers() {
    std::set<SaveRef> old;
    for (const auto& [part, chunks] : sealed_) {
      if (part.save.save_id + 5 < save_id_) old.insert(part.save);
    }
    for (const SaveRef& save : old) {
      ASSERT_OK(store_->RemoveSave(save));
      std::erase_if(sealed_, [&](const auto& entry) { return entry.first.save == save; });
    }
  }

  void DoRestart() {
    Reopen();
    ASSERT_NO_FATAL_FAILURE();
    pinned_.clear();
    CheckAll();
  }

  void CheckAll() {
    ASSERT_OK(store_->CheckConsistency());
    std::set<SaveRef> saves;
    std::set<Hash128> named;
    std::set<Hash128> bases;  // which deltas may keep
    for (const auto& [part, chunks] : sealed_) {
      ASSERT_OK(CheckPart(store_.get(), part, chunks));
      saves.insert(part.save);
      for (const TestChunk& chunk : chunks) {
        named.insert(chunk.hash());
        const std::optional<TestChunk> base = BaseOf(chunk);
        if (base.has_value()) bases.insert(base->hash());
      }
    }
    ASSERT_OK_AND_ASSIGN(const std::vector<SaveRef> listed, store_->ListSaves());
    ASSERT_EQ(listed, std::vector<SaveRef>(saves.begin(), saves.end()));
    ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
    ASSERT_EQ(stats.parts, sealed_.size());
    ASSERT_GE(stats.chunks, named.size());
    bases.insert(named.begin(), named.end());
    ASSERT_FALSE(pinned_.empty() && stats.chunks > bases.size()) << stats.chunks << " " << bases.size();
  }

  std::mt19937_64 random_{TestSeed()};
  uint64_t save_id_ = 1;
  std::map<PartRef, std::vector<TestChunk>> sealed_;
  std::map<PartRef, std::set<Hash128>> pinned_;
  std::map<Hash128, std::optional<TestChunk>> bases_;
  uint64_t deltas_ = 0;
};

TEST_F(StoreModelTest, RandomOperationsAgreeWithTheModel) {
  options_.recycle_bytes = random_() % 3 * 16 * kMiB;
  Open();
  // On, if luck gave it few deltas.
  const auto enough = [&](int step) { return step >= (deltas_ > kFewDeltas ? kSteps : 4 * kSteps); };
  for (int step = 0; !enough(step) && !HasFatalFailure(); ++step) {
    SCOPED_TRACE(step);
    const uint64_t choice = random_() % 100;
    if (choice < 25) {
      DoOffer();
    } else if (choice < 55) {
      DoPut();
    } else if (choice < 80) {
      DoSeal();
    } else if (choice < 87) {
      DoEndSave();
    } else if (choice < 97) {
      DoRemoveSave();
    } else {
      DoRestart();
    }
  }
  ASSERT_NO_FATAL_FAILURE(CheckAll());
  DoRestart();
  EXPECT_GT(deltas_, kFewDeltas);
}

}  // namespace
}  // namespace esker::testing
