#include "server/coordinator/catalog_records.h"

#include "format/base/text.h"
#include "format/envelope.h"
#include "format/names.h"
#include "tests/server/coordinator/coordinator_fixture.h"
#include "tests/testing/status_matchers.h"

namespace esker::testing {
namespace {

class CatalogRecordsTest : public CoordinatorTest {
 protected:
  void PutRaw(const std::string& key, const std::string& value) {
    ASSERT_OK_AND_ASSIGN(const bool put, catalog_->CompareAndSet({}, {{key, value}}));
    ASSERT_TRUE(put);
  }
  static v1::CheckpointRecord Checkpoint(uint64_t step, v1::CheckpointRecord::State state) {
    v1::CheckpointRecord record;
    record.set_run("r");
    record.set_step(step);
    record.set_state(state);
    return record;
  }
  CatalogRecords Records() { return CatalogRecords(catalog_.get()); }
};

TEST_F(CatalogRecordsTest, AnAbsentRecordIsAConditionToo) {
  ASSERT_OK_AND_ASSIGN(const StoredRun absent, Records().Run("r"));
  EXPECT_FALSE(absent.exists());
  v1::RunRecord record;
  record.set_run("r");
  record.set_attempt(3);
  ASSERT_OK_AND_ASSIGN(const bool made, Records().Apply(CatalogChange().If(absent).Put(record)));
  EXPECT_TRUE(made);
  ASSERT_OK_AND_ASSIGN(const bool again, Records().Apply(CatalogChange().If(absent).Put(record)));
  EXPECT_FALSE(again);
  ASSERT_OK_AND_ASSIGN(const StoredRun stored, Records().Run("r"));
  EXPECT_TRUE(stored.exists());
  EXPECT_EQ(stored.record.attempt(), 3u);
  ASSERT_OK_AND_ASSIGN(const bool removed, Records().Apply(CatalogChange().If(stored).Remove(stored)));
  EXPECT_TRUE(removed);
  EXPECT_FALSE(Records().Run("r")->exists());
}

TEST_F(CatalogRecordsTest, LatestCommittedIsTheHighestStepInThatState) {
  EXPECT_FALSE(Records().LatestCommitted("r")->exists());
  CatalogChange change;
  change.Put(Checkpoint(9, v1::CheckpointRecord::COMMITTED));
  change.Put(Checkpoint(10, v1::CheckpointRecord::COMMITTED));
  change.Put(Checkpoint(100, v1::CheckpointRecord::DELETING));
  ASSERT_OK(Records().Apply(change));
  EXPECT_EQ(Records().LatestCommitted("r")->record.step(), 10u);
  ASSERT_OK_AND_ASSIGN(const std::vector<StoredCheckpoint> all, Records().Checkpoints("r"));
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].record.step(), 9u);
  EXPECT_EQ(all[2].record.step(), 100u);
}

TEST_F(CatalogRecordsTest, RunsWhoseNamesBeginAlikeAreApart) {
  v1::CheckpointRecord other = Checkpoint(1, v1::CheckpointRecord::COMMITTED);
  other.set_run("r2");
  ASSERT_OK(Records().Apply(CatalogChange().Put(other)));
  EXPECT_TRUE(Records().Checkpoints("r")->empty());
}

TEST_F(CatalogRecordsTest, ADamagedRecordIsDataLossAndNamesTheEntry) {
  PutRaw(RunKey("r"), "rubbish");
  EXPECT_STATUS(Records().Run("r"), absl::StatusCode::kDataLoss, "catalog entry \"run/r\"");
  EXPECT_STATUS(Records().Runs(), absl::StatusCode::kDataLoss, "catalog entry \"run/r\"");
  std::string flipped =
      EncodeEnvelope(EnvelopeKind::kCheckpoint, Checkpoint(1, v1::CheckpointRecord::COMMITTED));
  flipped.back() ^= 1;
  PutRaw(CheckpointKey("r", 1), flipped);
  EXPECT_STATUS(Records().LatestCommitted("r"), absl::StatusCode::kDataLoss, CheckpointKey("r", 1));
}

TEST_F(CatalogRecordsTest, ARecordUnderAnothersKeyIsDataLoss) {
  PutRaw(CheckpointKey("r", 2),
         EncodeEnvelope(EnvelopeKind::kCheckpoint, Checkpoint(1, v1::CheckpointRecord::COMMITTED)));
  EXPECT_STATUS(Records().Checkpoint("r", 2), absl::StatusCode::kDataLoss, "holds the record of");
}

TEST_F(CatalogRecordsTest, ARecordOfAnotherKindIsDataLoss) {
  PutRaw(SaveKey("r", 1),
         EncodeEnvelope(EnvelopeKind::kCheckpoint, Checkpoint(1, v1::CheckpointRecord::COMMITTED)));
  EXPECT_STATUS(Records().Save("r", 1), absl::StatusCode::kDataLoss, SaveKey("r", 1));
}

}  // namespace
}  // namespace esker::testing
