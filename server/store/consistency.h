// The store's own audit: everything is counted again from its source and compared.
#pragma once

#include "absl/status/status.h"
#include "server/store/commit_context.h"
#include "server/store/data_directory.h"

namespace esker::store {

// kInternal lists what disagrees (the first few). Takes memory for every chunk of the store. On the
// committer's thread, so that the index is at rest; files are kept at rest, too.
absl::Status CheckStore(CommitContext* context, const StoreId& store_id);

}  // namespace esker::store
