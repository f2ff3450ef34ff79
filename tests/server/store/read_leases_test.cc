#include "server/store/read_leases.h"

#include <set>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace esker::store {
namespace {

const SaveRef kSave{.run = "run", .step = 1, .save_id = 2};
const SaveRef kOther{.run = "run", .step = 1, .save_id = 3};

TEST(ReadLeases, ExpireUnlessRenewed) {
  esker::testing::FakeClock clock;
  ReadLeases leases(&clock, 100, false);
  const uint64_t kept = leases.Open(kSave);
  const uint64_t left = leases.Open(kOther);
  clock.Advance(99);
  ASSERT_OK(leases.Renew(kept));
  clock.Advance(1);
  EXPECT_TRUE(leases.HasReaders(kSave));
  EXPECT_FALSE(leases.HasReaders(kOther));
  EXPECT_STATUS(leases.Renew(left), absl::StatusCode::kNotFound, "ran out");
  EXPECT_EQ(leases.count(), 1u);
  leases.Close(kept);
  leases.Close(kept);
  EXPECT_FALSE(leases.HasReaders(kSave));
}

TEST(ReadLeases, ASaveIsReadUntilItsLastLeaseEnds) {
  esker::testing::FakeClock clock;
  ReadLeases leases(&clock, 100, false);
  std::set<uint64_t> ids;
  for (int i = 0; i < 10; ++i) ids.insert(leases.Open(kSave));
  EXPECT_EQ(ids.size(), 10u);
  EXPECT_FALSE(ids.contains(0));
  for (const uint64_t id : ids) {
    EXPECT_TRUE(leases.HasReaders(kSave));
    leases.Close(id);
  }
  EXPECT_FALSE(leases.HasReaders(kSave));
}

TEST(ReadLeases, UnknownReadersEndWithTheFirstLeaseTime) {
  esker::testing::FakeClock clock;
  const ReadLeases leases(&clock, 100, true);
  EXPECT_TRUE(leases.MayHaveUnknownReaders());
  clock.Advance(99);
  EXPECT_TRUE(leases.MayHaveUnknownReaders());
  clock.Advance(1);
  EXPECT_FALSE(leases.MayHaveUnknownReaders());
}

}  // namespace
}  // namespace esker::store
