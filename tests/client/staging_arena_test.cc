#include "client/staging_arena.h"

#include <cstring>
#include <thread>

#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

TEST(StagingArena, GivesTheSameMemoryAgain) {
  StagingArena arena;
  ASSERT_OK_AND_ASSIGN(const auto first, arena.Acquire(1 << 20));
  EXPECT_GE(first->size(), 1u << 20);
  ASSERT_OK_AND_ASSIGN(const auto second, arena.Acquire(1 << 19));
  EXPECT_EQ(first, second);
}

TEST(StagingArena, GrowsWithTheState) {
  StagingArena arena;
  ASSERT_OK_AND_ASSIGN(auto first, arena.Acquire(1));
  const uint64_t size = first->size();
  first.reset();
  ASSERT_OK_AND_ASSIGN(const auto second, arena.Acquire(size + 1));
  EXPECT_GE(second->size(), size + 1);
  std::memset(second->data(), 1, second->size());
}

TEST(StagingArena, WhatItForgetsGoesWithItsLastUser) {
  StagingArena arena;
  ASSERT_OK_AND_ASSIGN(auto block, arena.Acquire(4096));
  const std::weak_ptr<StagingBlock> watched = block;
  arena.Forget();
  EXPECT_FALSE(watched.expired());
  ASSERT_OK_AND_ASSIGN(const auto other, arena.Acquire(4096));
  EXPECT_NE(other, block);
  block.reset();
  EXPECT_TRUE(watched.expired());
}

TEST(StagingArena, NeverHandsOutMemoryThatIsViewed) {
  StagingArena arena(/*views_end_ms=*/10);
  ASSERT_OK_AND_ASSIGN(const auto first, arena.Acquire(4096));
  std::memset(first->data(), 1, 4096);
  std::shared_ptr<const void> view = first->View();
  ASSERT_OK_AND_ASSIGN(const auto second, arena.Acquire(4096));
  ASSERT_NE(first, second);
  std::memset(second->data(), 2, 4096);
  EXPECT_EQ(first->data()[100], std::byte{1});
  ASSERT_OK_AND_ASSIGN(const auto third, arena.Acquire(4096));
  EXPECT_EQ(second, third);
}

TEST(StagingArena, WaitsForViewsThatEndSoon) {
  StagingArena arena(/*views_end_ms=*/60'000);
  ASSERT_OK_AND_ASSIGN(const auto first, arena.Acquire(4096));
  std::shared_ptr<const void> view = first->View();
  std::shared_ptr<const void> copy = view;
  view.reset();
  std::thread drops([&] { copy.reset(); });
  ASSERT_OK_AND_ASSIGN(const auto second, arena.Acquire(4096));
  EXPECT_EQ(first, second);
  drops.join();
}

TEST(StagingArena, ABlockLivesAsLongAsItsViews) {
  std::shared_ptr<const void> view;
  const std::byte* data = nullptr;
  {
    StagingArena arena;
    ASSERT_OK_AND_ASSIGN(const auto block, arena.Acquire(4096));
    block->data()[7] = std::byte{42};
    data = block->data();
    view = block->View();
  }
  EXPECT_EQ(data[7], std::byte{42});
}

TEST(StagingArena, PrefaultKeepsWhatIsWritten) {
  StagingArena arena;
  ASSERT_OK(arena.Prefault(32 << 20));
  ASSERT_OK_AND_ASSIGN(const auto block, arena.Acquire(16 << 20));
  std::memset(block->data(), 5, 16 << 20);
  EXPECT_EQ(block->size(), 32u << 20);
  ASSERT_OK_AND_ASSIGN(const auto again, arena.Acquire(32 << 20));
  EXPECT_EQ(again, block);
  EXPECT_EQ(again->data()[(16 << 20) - 1], std::byte{5});
}

TEST(StagingArena, RefusesWhatDoesNotFit) {
  StagingArena arena;
  EXPECT_STATUS(arena.Acquire(uint64_t{1} << 55), absl::StatusCode::kResourceExhausted, "available");
  EXPECT_STATUS(arena.Prefault(uint64_t{1} << 55), absl::StatusCode::kResourceExhausted, "36028797018963968");
  EXPECT_OK(arena.Acquire(4096));
}

}  // namespace
}  // namespace esker::testing
