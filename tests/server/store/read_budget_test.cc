#include "server/store/read_budget.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

namespace esker {
namespace {

TEST(ReadBudget, GrantsAtOnceWhatThereIs) {
  ReadBudget budget(10);
  int granted = 0;
  budget.Acquire(4, nullptr, [&](bool) { ++granted; });
  budget.Acquire(6, nullptr, [&](bool) { ++granted; });
  EXPECT_EQ(granted, 2);
  budget.GiveBack(10);
}

TEST(ReadBudget, WhoComesLaterDoesNotOvertake) {
  ReadBudget budget(10);
  std::vector<int> order;
  budget.Acquire(8, nullptr, [&](bool) { order.push_back(0); });
  budget.Acquire(5, nullptr, [&](bool) { order.push_back(1); });
  budget.Acquire(1, nullptr, [&](bool) { order.push_back(2); });
  EXPECT_EQ(order, (std::vector<int>{0}));
  budget.GiveBack(2);
  EXPECT_EQ(order, (std::vector<int>{0}));
  budget.GiveBack(6);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  budget.GiveBack(6);
}

TEST(ReadBudget, WhoIsWithdrawnLetsOthersPass) {
  ReadBudget budget(10);
  const int leaving = 0;
  std::vector<std::string> order;
  const auto note = [&](const std::string& who) {
    return [&order, who](bool granted) { order.push_back(who + (granted ? " has it" : " left")); };
  };
  budget.Acquire(8, &leaving, note("first"));
  budget.Acquire(5, &leaving, note("second"));
  budget.Acquire(2, nullptr, note("third"));
  budget.Withdraw(&leaving);
  EXPECT_EQ(order, (std::vector<std::string>{"first has it", "second left", "third has it"}));
  budget.Withdraw(&leaving);
  EXPECT_EQ(order.size(), 3u);
  budget.GiveBack(10);
}

TEST(ReadBudget, WaitsUntilItIsWhole) {
  ReadBudget budget(10);
  EXPECT_TRUE(budget.WaitUntilWhole(std::chrono::milliseconds(0)));
  budget.Acquire(1, nullptr, [](bool) {});
  EXPECT_FALSE(budget.WaitUntilWhole(std::chrono::milliseconds(1)));
  std::thread other([&] { budget.GiveBack(1); });
  EXPECT_TRUE(budget.WaitUntilWhole(std::chrono::minutes(1)));
  other.join();
}

}  // namespace
}  // namespace esker
