#include "server/rpc/read_budget.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace esker {
namespace {

TEST(ReadBudget, GrantsAtOnceWhatThereIs) {
  ReadBudget budget(10);
  int granted = 0;
  budget.Acquire(4, [&] { ++granted; });
  budget.Acquire(6, [&] { ++granted; });
  EXPECT_EQ(granted, 2);
  budget.GiveBack(10);
}

TEST(ReadBudget, WhoComesLaterDoesNotOvertake) {
  ReadBudget budget(10);
  std::vector<int> order;
  budget.Acquire(8, [&] { order.push_back(0); });
  budget.Acquire(5, [&] { order.push_back(1); });
  budget.Acquire(1, [&] { order.push_back(2); });
  EXPECT_EQ(order, (std::vector<int>{0}));
  budget.GiveBack(2);
  EXPECT_EQ(order, (std::vector<int>{0}));
  budget.GiveBack(6);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  budget.GiveBack(6);
}

TEST(ReadBudget, WaitsUntilItIsWhole) {
  ReadBudget budget(10);
  EXPECT_TRUE(budget.WaitUntilWhole(std::chrono::milliseconds(0)));
  budget.Acquire(1, [] {});
  EXPECT_FALSE(budget.WaitUntilWhole(std::chrono::milliseconds(1)));
  std::thread other([&] { budget.GiveBack(1); });
  EXPECT_TRUE(budget.WaitUntilWhole(std::chrono::minutes(1)));
  other.join();
}

}  // namespace
}  // namespace esker
