// The store's components on a directory of their own, without the threads that tie them together.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/store/commit_context.h"
#include "server/store/index.h"
#include "server/store/seal_group.h"
#include "server/store/segment_set.h"
#include "server/store/sessions.h"
#include "tests/server/store/fault_disk.h"
#include "tests/server/store/store_fixture.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {

class ComponentsTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSegmentBytes = 16 * kMiB;

  void SetUp() override;
  // All but the files is made anew, as by a restart without recovery.
  void Restart(uint64_t recycle_bytes = 64 * kMiB, uint64_t min_free_bytes = 0);

  // Gives a chunk a place and writes its record there, unsynced; pinned by `part`.
  store::WrittenChunk WriteChunk(const PartRef& part, const TestChunk& chunk);
  // A request as PrepareSeal makes it.
  store::SealRequest MakeRequest(const PartRef& part, const std::vector<TestChunk>& chunks);
  // Writes and seals a part in a group of one.
  void Save(const PartRef& part, const std::vector<TestChunk>& chunks);

  store::SegmentInfo InfoOf(uint64_t segment_id) const;

  TempDir directory_;
  FakeClock clock_;
  DiskFaults faults_;
  store::StoreId store_id_{1, 2, 3};
  std::vector<std::pair<uint64_t, std::optional<std::string>>> failures_;  // what SegmentSet told
  store::StoreCounts counts_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<store::Index> index_;
  std::unique_ptr<store::Sessions> sessions_;
  std::unique_ptr<store::SegmentSet> segments_;
  std::unique_ptr<store::CommitContext> context_;

 private:
  std::vector<std::unique_ptr<TestEnvelopes>> envelopes_;  // requests have views into them
};

}  // namespace esker::testing
