#include "server/io/buffer_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "format/base/mutex.h"
#include "server/io/disk.h"
#include "tests/testing/seed.h"

namespace esker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A piece, if one can be had at once.
std::optional<Buffer> TryAcquire(BufferPool* pool, uint64_t bytes, std::vector<Buffer>* late) {
  auto state = std::make_shared<std::optional<Buffer>>();
  auto in_call = std::make_shared<bool>(true);
  pool->AcquireAsync(bytes, [state, in_call, late](Buffer buffer) {
    if (*in_call) {
      *state = std::move(buffer);
    } else {
      late->push_back(std::move(buffer));
    }
  });
  *in_call = false;
  return std::move(*state);
}

TEST(BufferPool, PiecesAreAlignedAndLargeEnough) {
  BufferPool pool(uint64_t{1} << 20, uint64_t{1} << 19);
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, kBlockBytes - 1, kBlockBytes, kBlockBytes + 1, uint64_t{1} << 19}) {
    const Buffer buffer = pool.Acquire(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBlockBytes, 0u);
    EXPECT_EQ(buffer.size() % kBlockBytes, 0u);
    EXPECT_GE(buffer.size(), std::max<uint64_t>(bytes, 1));
    EXPECT_LT(buffer.size(), bytes + kBlockBytes + 1);
    EXPECT_GE(buffer.data(), pool.memory().data());
    EXPECT_LE(buffer.data() + buffer.size(), pool.memory().data() + pool.memory().size());
    buffer.data()[buffer.size() - 1] = std::byte{1};
  }
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(BufferPool, CapacityIsRoundedUpToWholeBlocksAndAllOfItCanBeHad) {
  BufferPool pool(3 * kBlockBytes - 100, kBlockBytes);
  EXPECT_EQ(pool.memory().size(), 3 * kBlockBytes);
  std::vector<Buffer> held;
  for (int i = 0; i < 3; ++i) held.push_back(pool.Acquire(kBlockBytes));
  EXPECT_EQ(pool.in_use_bytes(), 3 * kBlockBytes);
}

TEST(BufferPool, MovedFromBufferGivesNothingBackAndAssignmentGivesTheOldPieceBack) {
  BufferPool pool(4 * kBlockBytes, kBlockBytes);
  Buffer first = pool.Acquire(kBlockBytes);
  Buffer second = pool.Acquire(kBlockBytes);
  std::byte* const kept = second.data();
  first = std::move(second);
  EXPECT_FALSE(second);  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(first.data(), kept);
  EXPECT_EQ(pool.in_use_bytes(), kBlockBytes);
  Buffer& alias = first;
  first = std::move(alias);
  EXPECT_TRUE(first);
  first = Buffer();
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(BufferPool, AsyncCallbackRunsAtOnceWhereThereIsMemoryAndElseOnTheThreadThatGivesBack) {
  BufferPool pool(2 * kBlockBytes, 2 * kBlockBytes);
  Buffer held;
  pool.AcquireAsync(2 * kBlockBytes, [&](Buffer buffer) { held = std::move(buffer); });
  ASSERT_TRUE(held);

  std::thread::id called_on;
  Buffer later;
  pool.AcquireAsync(kBlockBytes, [&](Buffer buffer) {
    called_on = std::this_thread::get_id();
    later = std::move(buffer);
  });
  EXPECT_FALSE(later);
  std::thread::id releasing;
  std::thread([&] {
    releasing = std::this_thread::get_id();
    held = Buffer();
  }).join();
  EXPECT_TRUE(later);
  EXPECT_EQ(called_on, releasing);
}

TEST(BufferPool, WaitersAreServedInOrderSoThatSmallOnesDontStarveALargeOne) {
  BufferPool pool(8 * kBlockBytes, 8 * kBlockBytes);
  std::vector<Buffer> held;
  for (int i = 0; i < 8; ++i) held.push_back(pool.Acquire(kBlockBytes));
  std::vector<int> served;
  std::vector<Buffer> got;
  const auto ask = [&](int who, uint64_t blocks) {
    pool.AcquireAsync(blocks * kBlockBytes, [&, who](Buffer buffer) {
      served.push_back(who);
      got.push_back(std::move(buffer));
    });
  };
  ask(0, 6);
  ask(1, 1);
  ask(2, 1);
  for (int i = 0; i < 5; ++i) {
    held.pop_back();
    EXPECT_THAT(served, IsEmpty()) << "a small request overtook the large one after " << i + 1 << " blocks";
  }
  // Five blocks are free, but who comes now must queue behind those who wait.
  ask(3, 1);
  EXPECT_THAT(served, IsEmpty());
  held.pop_back();
  EXPECT_THAT(served, ElementsAre(0));
  held.pop_back();
  EXPECT_THAT(served, ElementsAre(0, 1));
  std::exchange(got, {}).clear();  // the callbacks fill `got` meanwhile
  EXPECT_THAT(served, ElementsAre(0, 1, 2, 3));
}

TEST(BufferPool, BlockedAcquireWakesWhenEnoughIsGivenBack) {
  BufferPool pool(4 * kBlockBytes, 4 * kBlockBytes);
  for (int round = 0; round < 200; ++round) {
    Buffer first = pool.Acquire(2 * kBlockBytes);
    Buffer second = pool.Acquire(2 * kBlockBytes);
    std::atomic<bool> woke{false};
    std::thread waiter([&] {
      const Buffer all = pool.Acquire(4 * kBlockBytes);
      woke = true;
    });
    first = Buffer();
    EXPECT_FALSE(woke);
    second = Buffer();
    waiter.join();
    EXPECT_TRUE(woke);
  }
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(BufferPool, ManyWaitersThatGiveBackAtOnceDontNest) {
  constexpr int kWaiters = 200'000;
  BufferPool pool(kBlockBytes, kBlockBytes);
  Buffer held = pool.Acquire(kBlockBytes);
  int served = 0;
  for (int i = 0; i < kWaiters; ++i) {
    pool.AcquireAsync(kBlockBytes, [&served](Buffer) { ++served; });
  }
  held = Buffer();
  EXPECT_EQ(served, kWaiters);
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

// Pieces never overlap, the count is right, who can't be served waits, and what was given back grows together
// again.
TEST(BufferPool, FreedNeighboursGrowTogether) {
  constexpr uint64_t kBlocks = 64;
  std::mt19937_64 random(testing::TestSeed());
  BufferPool pool(kBlocks * kBlockBytes, kBlocks * kBlockBytes);
  for (int round = 0; round < 50; ++round) {
    std::vector<Buffer> held;
    std::vector<Buffer> late;
    late.reserve(1);
    for (int step = 0; step < 200; ++step) {
      if (!held.empty() && random() % 2 == 0) {
        std::swap(held[random() % held.size()], held.back());
        held.pop_back();
      } else {
        std::optional<Buffer> got = TryAcquire(&pool, (1 + random() % 12) * kBlockBytes, &late);
        while (!got && late.empty()) held.pop_back();
        held.push_back(got ? std::move(*got) : std::move(late.front()));
        late.clear();
      }
      uint64_t in_use = 0;
      std::map<const std::byte*, uint64_t> by_address;
      for (const Buffer& buffer : held) {
        in_use += buffer.size();
        by_address[buffer.data()] = buffer.size();
      }
      ASSERT_EQ(pool.in_use_bytes(), in_use);
      const std::byte* end = pool.memory().data();
      for (const auto& [start, bytes] : by_address) {
        ASSERT_GE(start, end);
        end = start + bytes;
      }
    }
    std::shuffle(held.begin(), held.end(), random);
    held.clear();
    ASSERT_TRUE(TryAcquire(&pool, kBlocks * kBlockBytes, &late)) << "the free memory is in pieces";
  }
}

TEST(BufferPool, ThreadsNeverShareAPiece) {
  constexpr uint64_t kBlocks = 16;
  const uint64_t seed = testing::TestSeed();
  BufferPool pool(kBlocks * kBlockBytes, kBlocks * kBlockBytes);
  std::atomic<uint64_t> held_bytes{0};
  std::vector<std::thread> threads;
  for (uint64_t who = 1; who <= 8; ++who) {
    threads.emplace_back([&, who] {
      std::mt19937_64 random(seed + who);
      for (int i = 0; i < 500; ++i) {
        const Buffer buffer = pool.Acquire((1 + random() % kBlocks) * kBlockBytes);
        EXPECT_LE(held_bytes += buffer.size(), pool.memory().size());
        const auto mark = static_cast<std::byte>(who);
        for (uint64_t at = 0; at < buffer.size(); at += 512) buffer.data()[at] = mark;
        std::this_thread::yield();
        for (uint64_t at = 0; at < buffer.size(); at += 512) EXPECT_EQ(buffer.data()[at], mark);
        held_bytes -= buffer.size();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(BufferPoolDeathTest, MisuseStopsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(BufferPool(kBlockBytes, 2 * kBlockBytes), "capacity_bytes >= max_buffer_bytes");
  BufferPool pool(4 * kBlockBytes, kBlockBytes);
  EXPECT_DEATH((void)pool.Acquire(kBlockBytes + 1), "max_buffer_bytes");
  EXPECT_DEATH(
      {
        Buffer outlives;
        BufferPool short_lived(kBlockBytes, kBlockBytes);
        outlives = short_lived.Acquire(kBlockBytes);
      },
      "in_use_bytes == 0");
}

}  // namespace
}  // namespace esker
