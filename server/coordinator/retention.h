// Which checkpoints a retention policy deletes: a pure function.
#pragma once

#include <cstdint>
#include <vector>

#include "format/proto/catalog.pb.h"

namespace esker {

// Of one run's records, in any order, those in state COMMITTED that no rule of the policy keeps at
// `now_unix_ms`, by step. Never the one with the highest step, never a pinned one; nothing if every rule is
// off. Records in other states don't count.
std::vector<v1::CheckpointRecord> ExpiredCheckpoints(const v1::RetentionPolicy& policy,
                                                     const std::vector<v1::CheckpointRecord>& records,
                                                     int64_t now_unix_ms);

}  // namespace esker
