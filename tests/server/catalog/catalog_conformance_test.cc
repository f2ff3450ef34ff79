#include "tests/server/catalog/catalog_conformance.h"

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {

uint64_t CatalogConformance::Set(const std::string& key, const std::string& value) {
  const absl::StatusOr<bool> applied = catalog_->CompareAndSet({}, {{key, value}});
  EXPECT_TRUE(applied.ok() && *applied) << applied.status();
  return Find(key).version;
}

CatalogEntry CatalogConformance::Find(const std::string& key) {
  absl::StatusOr<std::optional<CatalogEntry>> entry = catalog_->Get(key);
  EXPECT_OK(entry);
  return entry.ok() ? std::move(*entry).value_or(CatalogEntry{}) : CatalogEntry{};
}

std::string CatalogConformance::Listed(const std::string& prefix) {
  const absl::StatusOr<std::vector<CatalogEntry>> entries = catalog_->List(prefix);
  EXPECT_OK(entries);
  std::string text;
  if (!entries.ok()) return text;
  for (const CatalogEntry& entry : *entries) {
    EXPECT_NE(entry.version, 0u);
    absl::StrAppend(&text, text.empty() ? "" : " ", entry.key, "=", entry.value);
  }
  return text;
}

TEST_P(CatalogConformance, AnAbsentKeyIsNoEntryAndNoError) {
  ASSERT_OK_AND_ASSIGN(const std::optional<CatalogEntry> entry, catalog_->Get("nothing"));
  EXPECT_FALSE(entry.has_value());
  EXPECT_EQ(Listed(""), "");
}

TEST_P(CatalogConformance, GetReturnsKeyValueAndVersion) {
  const uint64_t version = Set("a", "1");
  const CatalogEntry entry = Find("a");
  EXPECT_EQ(entry.key, "a");
  EXPECT_EQ(entry.value, "1");
  EXPECT_EQ(entry.version, version);
  EXPECT_NE(version, 0u);
}

TEST_P(CatalogConformance, KeysAndValuesHoldAnyBytes) {
  const std::string bytes("\0\xff\x01 /\n", 6);
  Set(bytes, bytes);
  EXPECT_EQ(Find(bytes).value, bytes);
  Set("empty", "");
  ASSERT_OK_AND_ASSIGN(const std::optional<CatalogEntry> empty, catalog_->Get("empty"));
  ASSERT_TRUE(empty.has_value());
  EXPECT_EQ(empty->value, "");
}

TEST_P(CatalogConformance, ListGivesThePrefixInTheOrderOfKeys) {
  for (const char* key : {"b/2", "b/1", "a/9", "b", "b0", "b/10", "c"}) Set(key, "x");
  EXPECT_EQ(Listed("b/"), "b/1=x b/10=x b/2=x");
  EXPECT_EQ(Listed("b"), "b=x b/1=x b/10=x b/2=x b0=x");
  EXPECT_EQ(Listed(""), "a/9=x b=x b/1=x b/10=x b/2=x b0=x c=x");
  EXPECT_EQ(Listed("b/2"), "b/2=x");
  EXPECT_EQ(Listed("b/3"), "");
  EXPECT_EQ(Listed("d"), "");
}

TEST_P(CatalogConformance, ListTakesPrefixesThatEndInTheLargestByte) {
  Set("\xff", "1");
  Set("\xff\xff", "2");
  Set(std::string("\xff\xff\0", 3), "3");
  Set("a\xff", "4");
  Set("b", "5");
  ASSERT_OK_AND_ASSIGN(const std::vector<CatalogEntry> largest, catalog_->List("\xff\xff"));
  EXPECT_EQ(largest.size(), 2u);
  ASSERT_OK_AND_ASSIGN(const std::vector<CatalogEntry> inner, catalog_->List("a\xff"));
  EXPECT_EQ(inner.size(), 1u);
}

TEST_P(CatalogConformance, VersionsGrowWithEachWriteOfAnyKey) {
  uint64_t last = 0;
  for (int i = 0; i < 20; ++i) {
    const uint64_t version = Set(absl::StrCat("key", i % 3), "v");
    EXPECT_GT(version, last);
    last = version;
  }
}

TEST_P(CatalogConformance, AKeyThatWasRemovedAndMadeAgainHasANewVersion) {
  const uint64_t first = Set("a", "1");
  ASSERT_OK(catalog_->CompareAndSet({{"a", first}}, {{"a", std::nullopt}}));
  Reopen();
  const uint64_t second = Set("a", "1");
  EXPECT_GT(second, first);
  ASSERT_OK_AND_ASSIGN(const bool applied, catalog_->CompareAndSet({{"a", first}}, {{"a", "2"}}));
  EXPECT_FALSE(applied);
}

TEST_P(CatalogConformance, AChangeOfOneKeyLeavesTheVersionsOfOthers) {
  const uint64_t a = Set("a", "1");
  Set("b", "1");
  EXPECT_EQ(Find("a").version, a);
}

TEST_P(CatalogConformance, VersionZeroDemandsThatTheKeyIsAbsent) {
  ASSERT_OK_AND_ASSIGN(const bool made, catalog_->CompareAndSet({{"a", 0}}, {{"a", "1"}}));
  EXPECT_TRUE(made);
  ASSERT_OK_AND_ASSIGN(const bool again, catalog_->CompareAndSet({{"a", 0}}, {{"a", "2"}}));
  EXPECT_FALSE(again);
  EXPECT_EQ(Find("a").value, "1");
}

TEST_P(CatalogConformance, AVersionDemandsThatTheKeyIsJustSo) {
  const uint64_t version = Set("a", "1");
  ASSERT_OK_AND_ASSIGN(const bool older, catalog_->CompareAndSet({{"a", version - 1}}, {{"a", "2"}}));
  EXPECT_FALSE(older);
  ASSERT_OK_AND_ASSIGN(const bool newer, catalog_->CompareAndSet({{"a", version + 1}}, {{"a", "2"}}));
  EXPECT_FALSE(newer);
  ASSERT_OK_AND_ASSIGN(const bool absent, catalog_->CompareAndSet({{"b", version}}, {{"a", "2"}}));
  EXPECT_FALSE(absent);
  EXPECT_EQ(Find("a").value, "1");
  ASSERT_OK_AND_ASSIGN(const bool just_so, catalog_->CompareAndSet({{"a", version}}, {{"a", "2"}}));
  EXPECT_TRUE(just_so);
  EXPECT_EQ(Find("a").value, "2");
}

TEST_P(CatalogConformance, AConditionMayBeOnAKeyThatIsNotWritten) {
  const uint64_t fence = Set("fence", "1");
  ASSERT_OK_AND_ASSIGN(const bool held, catalog_->CompareAndSet({{"fence", fence}}, {{"a", "1"}}));
  EXPECT_TRUE(held);
  EXPECT_EQ(Find("fence").version, fence);
  Set("fence", "2");
  ASSERT_OK_AND_ASSIGN(const bool lost, catalog_->CompareAndSet({{"fence", fence}}, {{"a", "2"}}));
  EXPECT_FALSE(lost);
  EXPECT_EQ(Find("a").value, "1");
}

TEST_P(CatalogConformance, AChangeOfManyKeysIsAllOrNothing) {
  const uint64_t a = Set("a", "1");
  const uint64_t b = Set("b", "1");
  const std::vector<CatalogMutation> change = {{"a", std::nullopt}, {"b", "2"}, {"c", "2"}};
  ASSERT_OK_AND_ASSIGN(const bool lost, catalog_->CompareAndSet({{"a", a}, {"b", b + 100}}, change));
  EXPECT_FALSE(lost);
  EXPECT_EQ(Listed(""), "a=1 b=1");
  ASSERT_OK_AND_ASSIGN(const bool held, catalog_->CompareAndSet({{"a", a}, {"b", b}, {"c", 0}}, change));
  EXPECT_TRUE(held);
  EXPECT_EQ(Listed(""), "b=2 c=2");
}

TEST_P(CatalogConformance, RemovingAnAbsentKeyIsFine) {
  ASSERT_OK_AND_ASSIGN(const bool applied, catalog_->CompareAndSet({{"a", 0}}, {{"a", std::nullopt}}));
  EXPECT_TRUE(applied);
  EXPECT_EQ(Listed(""), "");
}

TEST_P(CatalogConformance, ConditionsWithoutMutationsAreOnlyAQuestion) {
  const uint64_t version = Set("a", "1");
  ASSERT_OK_AND_ASSIGN(const bool yes, catalog_->CompareAndSet({{"a", version}, {"b", 0}}, {}));
  EXPECT_TRUE(yes);
  ASSERT_OK_AND_ASSIGN(const bool no, catalog_->CompareAndSet({{"a", version}, {"b", 1}}, {}));
  EXPECT_FALSE(no);
}

TEST_P(CatalogConformance, WhatWasAcknowledgedIsThereAfterReopening) {
  std::map<std::string, CatalogEntry> expected;
  for (int i = 0; i < 100; ++i) {
    const std::string key = absl::StrCat("key", i % 40);
    Set(key, absl::StrCat("value", i));
    expected[key] = Find(key);
    if (i % 33 == 0) Reopen();
  }
  ASSERT_OK(catalog_->CompareAndSet({}, {{"key7", std::nullopt}}));
  expected.erase("key7");
  Reopen();
  ASSERT_OK_AND_ASSIGN(const std::vector<CatalogEntry> entries, catalog_->List("key"));
  ASSERT_EQ(entries.size(), expected.size());
  for (const CatalogEntry& entry : entries) {
    EXPECT_EQ(entry.value, expected[entry.key].value);
    EXPECT_EQ(entry.version, expected[entry.key].version);
  }
  EXPECT_GT(Set("more", "x"), entries.back().version);
}

TEST_P(CatalogConformance, LimitsAreChecked) {
  const std::string long_key(512, 'k');
  const std::string long_value(kMaxCatalogValueBytes, 'v');
  Set(long_key, long_value);
  EXPECT_EQ(Find(long_key).value, long_value);

  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_STATUS(catalog_->Get(""), kInvalid, "key of 0 bytes");
  EXPECT_STATUS(catalog_->Get(long_key + "k"), kInvalid, "key of 513 bytes: expected 1 to 512");
  EXPECT_STATUS(catalog_->CompareAndSet({}, {{"", "v"}}), kInvalid, "key of 0 bytes");
  EXPECT_STATUS(catalog_->CompareAndSet({{long_key + "k", 0}}, {{"a", "v"}}), kInvalid, "key of 513 bytes");
  EXPECT_STATUS(catalog_->CompareAndSet({}, {{"a", "1"}, {"b", long_value + "v"}}), kInvalid,
                "value of 1048577 bytes for \"b\": expected at most 1048576");
  EXPECT_STATUS(catalog_->CompareAndSet({}, {{"a", "1"}, {"b", "1"}, {"a", "2"}}), kInvalid,
                "key \"a\" twice");
  EXPECT_EQ(Listed("a"), "");

  std::vector<CatalogCondition> conditions;
  std::vector<CatalogMutation> mutations;
  for (size_t i = 0; i < kMaxCatalogOperations / 2; ++i) {
    conditions.push_back({absl::StrCat("many", i), 0});
    mutations.push_back({absl::StrCat("many", i), "v"});
  }
  ASSERT_OK_AND_ASSIGN(const bool as_many_as_allowed, catalog_->CompareAndSet(conditions, mutations));
  EXPECT_TRUE(as_many_as_allowed);
  mutations.push_back({"one more", "v"});
  EXPECT_STATUS(catalog_->CompareAndSet(conditions, mutations), kInvalid, "expected at most 64 together");
}

TEST_P(CatalogConformance, CountersOfEightThreadsLoseNoIncrement) {
  constexpr int kThreads = 8;
  constexpr int kIncrements = 50;
  std::atomic<int> lost_races = 0;
  const auto increment = [&](const std::string& key) {
    while (true) {
      const CatalogEntry entry = Find(key);
      const int value = entry.version == 0 ? 0 : std::stoi(entry.value);
      const absl::StatusOr<bool> applied =
          catalog_->CompareAndSet({{key, entry.version}}, {{key, absl::StrCat(value + 1)}});
      ASSERT_OK(applied);
      if (*applied) return;
      ++lost_races;
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kIncrements; ++i) increment(absl::StrCat("counter", (i + t) % 3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  Reopen();
  int sum = 0;
  for (const char* key : {"counter0", "counter1", "counter2"}) sum += std::stoi(Find(key).value);
  EXPECT_EQ(sum, kThreads * kIncrements) << "after " << lost_races << " lost races";
}

// Writers move one unit at a time between two keys in one change: a List that is of one moment always sees
// the same sum.
TEST_P(CatalogConformance, ListIsOfOneMoment) {
  Set("sum/a", "1000");
  Set("sum/z", "1000");
  for (int i = 0; i < 200; ++i) Set(absl::StrCat("sum/filler", i), "0");
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int i = 0; i < 300; ++i) {
      const int a = std::stoi(Find("sum/a").value);
      ASSERT_OK(catalog_->CompareAndSet(
          {}, {{"sum/a", absl::StrCat(a - 1)}, {"sum/z", absl::StrCat(2000 - (a - 1))}}));
    }
    stop = true;
  });
  int lists = 0;
  do {
    ASSERT_OK_AND_ASSIGN(const std::vector<CatalogEntry> entries, catalog_->List("sum/"));
    ASSERT_EQ(entries.size(), 202u);
    EXPECT_EQ(std::stoi(entries.front().value) + std::stoi(entries.back().value), 2000);
    ++lists;
  } while (!stop);
  writer.join();
  EXPECT_GT(lists, 1);
}

// Random changes against a model in memory, with reopening.
TEST_P(CatalogConformance, AgreesWithAModel) {
  std::mt19937_64 random(TestSeed());
  std::map<std::string, std::pair<std::string, uint64_t>> model;
  const auto version_of = [&](const std::string& key) { return model.contains(key) ? model[key].second : 0; };
  for (int round = 0; round < 400; ++round) {
    std::vector<CatalogCondition> conditions;
    std::map<std::string, std::optional<std::string>> changes;
    bool expected = true;
    for (uint64_t i = random() % 4; i > 0; --i) {
      const std::string key = absl::StrCat("k", random() % 12);
      const bool right = random() % 5 != 0;
      expected = expected && right;
      conditions.push_back({key, version_of(key) + (right ? 0 : 1 + random() % 3)});
    }
    for (uint64_t i = 1 + random() % 4; i > 0; --i) {
      std::optional<std::string> value;
      if (random() % 3 != 0) value = std::string(random() % 100, static_cast<char>('a' + round % 26));
      changes[absl::StrCat("k", random() % 12)] = value;
    }
    const std::vector<CatalogMutation> mutations = [&] {
      std::vector<CatalogMutation> list;
      for (const auto& [key, value] : changes) list.push_back({key, value});
      return list;
    }();
    ASSERT_OK_AND_ASSIGN(const bool applied, catalog_->CompareAndSet(conditions, mutations));
    ASSERT_EQ(applied, expected) << "round " << round;
    for (const auto& [key, value] : changes) {
      if (!applied) break;
      if (value.has_value()) {
        model[key] = {*value, Find(key).version};
      } else {
        model.erase(key);
      }
    }
    if (random() % 50 == 0) Reopen();
    ASSERT_OK_AND_ASSIGN(const std::vector<CatalogEntry> entries, catalog_->List("k"));
    ASSERT_EQ(entries.size(), model.size()) << "round " << round;
    auto wanted = model.begin();
    for (const CatalogEntry& entry : entries) {
      ASSERT_EQ(entry.key, wanted->first);
      ASSERT_EQ(entry.value, wanted->second.first);
      ASSERT_EQ(entry.version, wanted->second.second);
      ++wanted;
    }
  }
}

}  // namespace esker::testing
