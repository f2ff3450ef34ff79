// The catalog: the small, consistent key-value store that says which runs, attempts, saves and checkpoints
// exist (keys: format/names.h, values: format/proto/catalog.proto in envelopes). RocksDB when there is one
// server (rocks_catalog.h). One conformance suite (tests/server/catalog/) runs on every implementation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace esker {

struct CatalogEntry {
  std::string key;
  std::string value;
  uint64_t version = 0;  // grows with each write of any key; never 0
};

// A key must have just this version; 0: must not exist.
struct CatalogCondition {
  std::string key;
  uint64_t version = 0;
};

// Sets a key, or removes it if there is no value.
struct CatalogMutation {
  std::string key;
  std::optional<std::string> value;
};

// Thread-safe. Every operation is linearizable. Keys: 1 to 512 bytes; values: at most kMaxCatalogValueBytes;
// at most kMaxCatalogOperations conditions and mutations together (the limits of etcd, with room to spare);
// otherwise kInvalidArgument.
inline constexpr size_t kMaxCatalogValueBytes = 1 << 20;
inline constexpr size_t kMaxCatalogOperations = 64;

class Catalog {
 public:
  virtual ~Catalog() = default;

  virtual absl::StatusOr<std::optional<CatalogEntry>> Get(std::string_view key) const = 0;
  // The entries whose keys begin with `prefix`, by key, all of one moment.
  virtual absl::StatusOr<std::vector<CatalogEntry>> List(std::string_view prefix) const = 0;

  // Applies all mutations if all conditions hold, or nothing. Returns whether they held: a lost race is a
  // value, not an error. Durable when it returns true. After an error (kUnavailable, kDataLoss) it may have
  // been applied or not: read again.
  virtual absl::StatusOr<bool> CompareAndSet(const std::vector<CatalogCondition>& conditions,
                                             const std::vector<CatalogMutation>& mutations) = 0;
};

}  // namespace esker
