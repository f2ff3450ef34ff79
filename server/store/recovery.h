// What happens at a start: index and segment files are brought into agreement, and what nothing refers to is
// reclaimed.
#pragma once

#include "absl/status/status.h"
#include "server/io/disk.h"
#include "server/store/commit_context.h"
#include "server/store/data_directory.h"

namespace esker::store {

// Fills context->segments and context->counts. Its memory is bounded by one segment's records, not by the
// number of chunks. A segment file that is missing, damaged or another store's is no reason to stop: it is
// logged, and the segment takes no more records; reads of its chunks say what is wrong. On the committer's
// thread, before all else.
absl::Status Recover(CommitContext* context, Disk* disk, const StoreId& store_id);

}  // namespace esker::store
