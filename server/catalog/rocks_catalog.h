// The catalog of a single server, in a RocksDB of its own. Every change is one synced write batch.
#pragma once

#include <memory>
#include <string>

#include "server/catalog/catalog.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace esker {

// Opens, or makes, the catalog in `directory` (its parent must exist). kFailedPrecondition if it is open
// elsewhere or was written by a newer format, kDataLoss if it is damaged, kPermissionDenied,
// kResourceExhausted if the disk is full. `env` is where RocksDB's files are, and must outlive the catalog;
// null: the machine's file systems.
//
// After a change has failed because of the disk, changes go on failing, and reads answer what was before it.
// A full disk (kResourceExhausted) is over some seconds after there is space again, and the failed change is
// then known not to be applied. After any other error (kUnavailable) the catalog must be opened again: what
// reached the disk of the failed change shows then.
absl::StatusOr<std::unique_ptr<Catalog>> OpenRocksCatalog(const std::string& directory,
                                                          rocksdb::Env* env = nullptr);

}  // namespace esker
