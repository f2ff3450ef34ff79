#include "server/coordinator/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_join.h"

namespace esker {
namespace {

constexpr int64_t kNow = 1'000'000'000;

// Letters after the step: p pinned, d DELETING. Committed `age_ms` before kNow.
v1::CheckpointRecord Record(uint64_t step, const std::string& letters = "", int64_t age_ms = 0) {
  v1::CheckpointRecord record;
  record.set_step(step);
  record.set_state(letters.find('d') == std::string::npos ? v1::CheckpointRecord::COMMITTED
                                                          : v1::CheckpointRecord::DELETING);
  record.set_pinned(letters.find('p') != std::string::npos);
  record.set_committed_unix_ms(kNow - age_ms);
  return record;
}

v1::RetentionPolicy Policy(uint64_t keep_last, uint64_t keep_every, uint64_t keep_within_ms) {
  v1::RetentionPolicy policy;
  policy.set_keep_last(keep_last);
  policy.set_keep_every(keep_every);
  policy.set_keep_within_ms(keep_within_ms);
  return policy;
}

std::string Expired(const v1::RetentionPolicy& policy, const std::vector<v1::CheckpointRecord>& records,
                    int64_t now = kNow) {
  return absl::StrJoin(ExpiredCheckpoints(policy, records, now), " ",
                       [](std::string* out, const v1::CheckpointRecord& record) {
                         out->append(std::to_string(record.step()));
                       });
}

std::vector<v1::CheckpointRecord> Steps(const std::vector<uint64_t>& steps) {
  std::vector<v1::CheckpointRecord> records;
  for (const uint64_t step : steps) records.push_back(Record(step));
  return records;
}

TEST(Retention, EveryRuleOffDeletesNothing) { EXPECT_EQ(Expired(Policy(0, 0, 0), Steps({1, 2, 3})), ""); }

TEST(Retention, NoRecordsAreNoTrouble) { EXPECT_EQ(Expired(Policy(1, 1, 1), {}), ""); }

TEST(Retention, KeepLastKeepsTheNewestByStep) {
  EXPECT_EQ(Expired(Policy(1, 0, 0), Steps({1, 2, 3, 4})), "1 2 3");
  EXPECT_EQ(Expired(Policy(3, 0, 0), Steps({1, 2, 3, 4})), "1");
  EXPECT_EQ(Expired(Policy(4, 0, 0), Steps({1, 2, 3, 4})), "");
  EXPECT_EQ(Expired(Policy(std::numeric_limits<uint64_t>::max(), 0, 0), Steps({1, 2, 3, 4})), "");
}

TEST(Retention, TheOrderOfTheRecordsDoesNotMatter) {
  EXPECT_EQ(Expired(Policy(2, 0, 0), Steps({30, 1, 200, 4})), "1 4");
}

TEST(Retention, KeepEveryKeepsMultiples) {
  EXPECT_EQ(Expired(Policy(0, 100, 0), Steps({0, 50, 100, 150, 200, 250, 275})), "50 150 250");
  EXPECT_EQ(Expired(Policy(0, 1, 0), Steps({1, 2, 3})), "");
}

TEST(Retention, KeepWithinKeepsTheYoung) {
  const std::vector<v1::CheckpointRecord> records = {Record(1, "", 5001), Record(2, "", 5000),
                                                     Record(3, "", 10), Record(4, "", 0)};
  EXPECT_EQ(Expired(Policy(0, 0, 5000), records), "1");
  EXPECT_EQ(Expired(Policy(0, 0, 5001), records), "");
  EXPECT_EQ(Expired(Policy(0, 0, 9), records), "1 2 3");
  EXPECT_EQ(Expired(Policy(0, 0, std::numeric_limits<uint64_t>::max()), records), "");
}

TEST(Retention, AgeCountsAndNotTheStep) {
  // Step 1 was saved again after the job went back.
  EXPECT_EQ(Expired(Policy(0, 0, 100), {Record(1, "", 50), Record(2, "", 500), Record(3, "", 600)}), "2");
}

TEST(Retention, AClockThatWasPutBackKeepsRatherThanDeletes) {
  EXPECT_EQ(Expired(Policy(0, 0, 1), {Record(1, "", -5000), Record(2, "", 0)}), "");
  EXPECT_EQ(
      Expired(Policy(0, 0, 1), {Record(1, "", 0), Record(2, "", 0)}, std::numeric_limits<int64_t>::min()),
      "");
}

TEST(Retention, WhatOneRuleKeepsIsKept) {
  const std::vector<v1::CheckpointRecord> records = {Record(1, "", 900), Record(2, "", 50),
                                                     Record(3, "", 800), Record(4, "", 700),
                                                     Record(5, "", 600), Record(6, "", 500)};
  EXPECT_EQ(Expired(Policy(2, 3, 100), records), "1 4");
}

TEST(Retention, TheNewestIsNeverDeleted) {
  EXPECT_EQ(Expired(Policy(0, 1000, 0), Steps({7})), "");
  EXPECT_EQ(Expired(Policy(0, 1000, 0), Steps({7, 8, 9})), "7 8");
  EXPECT_EQ(Expired(Policy(0, 0, 1), {Record(1, "", 1000), Record(2, "", 1000)}), "1");
}

TEST(Retention, PinnedOnesAreNeverDeletedAndCountAmongTheNewest) {
  EXPECT_EQ(Expired(Policy(1, 0, 0), {Record(1, "p"), Record(2), Record(3, "p"), Record(4)}), "2");
  EXPECT_EQ(Expired(Policy(2, 0, 0), {Record(1), Record(2), Record(3, "p"), Record(4)}), "1 2");
}

TEST(Retention, DeletedOnesNeitherCountNorAreDeletedAgain) {
  EXPECT_EQ(Expired(Policy(2, 0, 0), {Record(1), Record(2), Record(3), Record(4, "d"), Record(5, "d")}), "1");
  EXPECT_EQ(Expired(Policy(1, 0, 0), {Record(1), Record(2, "d")}), "");
}

TEST(Retention, StepsUpToTheLargestWork) {
  const uint64_t largest = (uint64_t{1} << 63) - 1;
  EXPECT_EQ(Expired(Policy(1, 0, 0), Steps({largest, largest - 1})), std::to_string(largest - 1));
}

}  // namespace
}  // namespace esker
