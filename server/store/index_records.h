// The bytes of the index: keys and values of its column families. docs/format.md, "The index (RocksDB)",
// specifies them.
//
// Integers in keys are big-endian, so that keys sort as the numbers do; in values they are little-endian.
// Each value that is not an envelope begins with the version of its record.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "format/chunk_record.h"
#include "format/hash.h"
#include "server/store/store.h"

namespace esker::store {

// A chunk that is durable. refs: how many parts name it, and how many deltas have it as their base; 0 only
// while something pins it (family `unreferenced`).
struct ChunkEntry {
  ChunkInfo info;
  RecordPlace place;
  uint64_t refs = 0;
  Hash128 base{};  // of a delta (format/delta.h): the chunk that it keeps alive

  bool is_delta() const { return info.codec == CodecId::kDelta; }
  uint64_t record_bytes() const { return RecordBytes(info.stored_bytes); }
  bool operator==(const ChunkEntry&) const = default;
};

// What lies at a place: the other direction of ChunkEntry.
struct PlaceEntry {
  uint64_t segment_id = 0;
  uint64_t offset = 0;
  uint64_t record_bytes = 0;
  Hash128 hash{};

  uint64_t end() const { return offset + record_bytes; }
  bool operator==(const PlaceEntry&) const = default;
};

// A sealed part without its envelope.
struct PartEntry {
  uint64_t attempt = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  uint64_t new_stored_bytes = 0;
  int64_t sealed_unix_ms = 0;
  Hash128 part_digest{};
  Hash128 layout_digest{};

  bool operator==(const PartEntry&) const = default;
};

// A part's name within one store. A save has one attempt, so the attempt is no part of it.
struct PartKey {
  SaveRef save;
  uint32_t rank = 0;

  auto operator<=>(const PartKey&) const = default;
};

std::string EncodeSaveKey(const SaveRef& save);
std::string EncodePartKey(const PartKey& part);
std::string EncodePlaceKey(uint64_t segment_id, uint64_t offset);

std::string EncodeChunkValue(const ChunkEntry& entry);
std::string EncodePlaceValue(const PlaceEntry& entry);
std::string EncodePartValue(const PartEntry& entry);
std::string EncodeLayoutRefs(uint64_t refs);

// kDataLoss if the key or value is no such record, kUnimplemented if it is of a newer version.
absl::StatusOr<SaveRef> DecodeSaveKey(std::string_view key);
absl::StatusOr<PartKey> DecodePartKey(std::string_view key);
absl::StatusOr<ChunkEntry> DecodeChunkValue(const Hash128& hash, std::string_view value);
absl::StatusOr<PlaceEntry> DecodePlace(std::string_view key, std::string_view value);
absl::StatusOr<PartEntry> DecodePartValue(std::string_view value);
absl::StatusOr<uint64_t> DecodeLayoutRefs(std::string_view value);

}  // namespace esker::store
