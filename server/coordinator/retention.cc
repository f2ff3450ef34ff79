#include "server/coordinator/retention.h"

#include <algorithm>

namespace esker {
namespace {

bool IsWithin(uint64_t keep_within_ms, int64_t committed_unix_ms, int64_t now_unix_ms) {
  if (keep_within_ms == 0) return false;
  // Committed in the future: the clock was put back.
  if (committed_unix_ms >= now_unix_ms) return true;
  return static_cast<uint64_t>(now_unix_ms) - static_cast<uint64_t>(committed_unix_ms) <= keep_within_ms;
}

}  // namespace

std::vector<v1::CheckpointRecord> ExpiredCheckpoints(const v1::RetentionPolicy& policy,
                                                     const std::vector<v1::CheckpointRecord>& records,
                                                     int64_t now_unix_ms) {
  if (policy.keep_last() == 0 && policy.keep_every() == 0 && policy.keep_within_ms() == 0) return {};
  std::vector<const v1::CheckpointRecord*> committed;
  for (const v1::CheckpointRecord& record : records) {
    if (record.state() == v1::CheckpointRecord::COMMITTED) committed.push_back(&record);
  }
  std::sort(committed.begin(), committed.end(),
            [](const auto* a, const auto* b) { return a->step() < b->step(); });
  std::vector<v1::CheckpointRecord> expired;
  for (size_t i = 0; i < committed.size(); ++i) {
    const v1::CheckpointRecord& record = *committed[i];
    const size_t newer = committed.size() - 1 - i;
    const bool kept = newer == 0 || record.pinned() || newer < policy.keep_last() ||
                      (policy.keep_every() != 0 && record.step() % policy.keep_every() == 0) ||
                      IsWithin(policy.keep_within_ms(), record.committed_unix_ms(), now_unix_ms);
    if (!kept) expired.push_back(record);
  }
  return expired;
}

}  // namespace esker
