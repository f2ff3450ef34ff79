#include "server/store/index_records.h"

#include "format/base/bytes.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker::store {
namespace {

constexpr uint8_t kRecordVersion = 1;
constexpr uint8_t kDeltaChunkVersion = 2;  // a chunk's value with its base
constexpr size_t kChunkValueBytes = 56;
constexpr size_t kDeltaChunkValueBytes = kChunkValueBytes + sizeof(Hash128);
constexpr size_t kPlaceValueBytes = 32;
constexpr size_t kPartValueBytes = 80;
constexpr size_t kLayoutRefsBytes = 16;
constexpr size_t kSaveKeyTail = 1 + 8 + 8;  // behind the run's name
constexpr size_t kRankBytes = 4;

template <typename T>
void AppendBig(std::string* to, T value) {
  for (int shift = static_cast<int>(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    *to += static_cast<char>(static_cast<uint8_t>(value >> shift));
  }
}

template <typename T>
T LoadBig(std::string_view from) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = (value << 8) | static_cast<uint8_t>(from[i]);
  return value;
}

// A value under construction, all zeros but for its version.
class Value {
 public:
  explicit Value(size_t bytes, uint8_t version = kRecordVersion) : bytes_(bytes, '\0') { Set(0, version); }

  template <typename T>
  void Set(size_t offset, T value) {
    StoreLittle(reinterpret_cast<std::byte*>(bytes_.data()) + offset, value);
  }
  void Set(size_t offset, const Hash128& hash) { bytes_.replace(offset, hash.bytes.size(), hash.AsText()); }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

template <typename T>
T Get(std::string_view value, size_t offset) {
  return LoadLittle<T>(reinterpret_cast<const std::byte*>(value.data()) + offset);
}

Hash128 GetHash(std::string_view value, size_t offset) {
  Hash128 hash;
  value.copy(reinterpret_cast<char*>(hash.bytes.data()), hash.bytes.size(), offset);
  return hash;
}

absl::Status Damaged(std::string_view what, std::string_view why) {
  return absl::DataLossError(StrCat("index: ", what, ": ", why));
}

absl::Status CheckValue(std::string_view value, size_t bytes, std::string_view what,
                        uint8_t newest = kRecordVersion) {
  if (!value.empty() && Get<uint8_t>(value, 0) > newest) {
    return absl::UnimplementedError(StrCat("index: ", what, ": written as version ", Get<uint8_t>(value, 0),
                                           ", this program reads up to ", newest, ": use a newer one"));
  }
  if (value.size() != bytes) {
    return Damaged(what, StrCat("expected ", bytes, " bytes, found ", value.size()));
  }
  if (Get<uint8_t>(value, 0) == 0) return Damaged(what, "expected a version of 1 or more, found 0");
  return absl::OkStatus();
}

}  // namespace

std::string EncodeSaveKey(const SaveRef& save) {
  std::string key = save.run;
  key += '\0';  // run names hold none, so no run's keys lie between another's
  AppendBig(&key, save.step);
  AppendBig(&key, save.save_id);
  return key;
}

std::string EncodePartKey(const PartKey& part) {
  std::string key = EncodeSaveKey(part.save);
  AppendBig(&key, part.rank);
  return key;
}

std::string EncodePlaceKey(uint64_t segment_id, uint64_t offset) {
  std::string key;
  AppendBig(&key, segment_id);
  AppendBig(&key, offset);
  return key;
}

absl::StatusOr<SaveRef> DecodeSaveKey(std::string_view key) {
  const size_t zero = key.find('\0');
  if (zero == 0 || zero == std::string_view::npos || key.size() != zero + kSaveKeyTail) {
    return Damaged("key of a save", StrCat("\"", Printable(key), "\" is none"));
  }
  return SaveRef{.run = std::string(key.substr(0, zero)),
                 .step = LoadBig<uint64_t>(key.substr(zero + 1)),
                 .save_id = LoadBig<uint64_t>(key.substr(zero + 9))};
}

absl::StatusOr<PartKey> DecodePartKey(std::string_view key) {
  if (key.size() < kRankBytes) return Damaged("key of a part", StrCat("\"", Printable(key), "\" is none"));
  ESKER_ASSIGN_OR_RETURN(SaveRef save, DecodeSaveKey(key.substr(0, key.size() - kRankBytes)));
  return PartKey{.save = std::move(save), .rank = LoadBig<uint32_t>(key.substr(key.size() - kRankBytes))};
}

std::string EncodeChunkValue(const ChunkEntry& entry) {
  Value value = entry.is_delta() ? Value(kDeltaChunkValueBytes, kDeltaChunkVersion) : Value(kChunkValueBytes);
  value.Set(1, static_cast<uint8_t>(entry.info.codec));
  value.Set(2, static_cast<uint8_t>(entry.info.dtype));
  value.Set(4, entry.info.stored_crc32c);
  value.Set(8, entry.info.raw_bytes);
  value.Set(16, entry.info.stored_bytes);
  value.Set(24, entry.place.segment_id);
  value.Set(32, entry.place.generation);
  value.Set(40, entry.place.offset);
  value.Set(48, entry.refs);
  if (entry.is_delta()) value.Set(56, entry.base);
  return value.Take();
}

absl::StatusOr<ChunkEntry> DecodeChunkValue(const Hash128& hash, std::string_view value) {
  const std::string what = StrCat("chunk ", hash.ToHex());
  const bool has_base = !value.empty() && Get<uint8_t>(value, 0) == kDeltaChunkVersion;
  ESKER_RETURN_IF_ERROR(
      CheckValue(value, has_base ? kDeltaChunkValueBytes : kChunkValueBytes, what, kDeltaChunkVersion));
  ChunkEntry entry;
  entry.info = {.hash = hash,
                .codec = static_cast<CodecId>(Get<uint8_t>(value, 1)),
                .dtype = static_cast<DType>(Get<uint8_t>(value, 2)),
                .raw_bytes = Get<uint64_t>(value, 8),
                .stored_bytes = Get<uint64_t>(value, 16),
                .stored_crc32c = Get<uint32_t>(value, 4)};
  entry.place = {.segment_id = Get<uint64_t>(value, 24),
                 .generation = Get<uint64_t>(value, 32),
                 .offset = Get<uint64_t>(value, 40)};
  entry.refs = Get<uint64_t>(value, 48);
  if (has_base) entry.base = GetHash(value, 56);
  if (entry.is_delta() != has_base) return Damaged(what, "a delta's value names its base, and no other does");
  if (absl::Status status = ValidateChunkInfo(entry.info); !status.ok()) {
    return Damaged(what, std::string(status.message()));
  }
  return entry;
}

std::string EncodePlaceValue(const PlaceEntry& entry) {
  Value value(kPlaceValueBytes);
  value.Set(8, entry.record_bytes);
  value.Set(16, entry.hash);
  return value.Take();
}

absl::StatusOr<PlaceEntry> DecodePlace(std::string_view key, std::string_view value) {
  if (key.size() != 16) return Damaged("place", StrCat("expected a key of 16 bytes, found ", key.size()));
  PlaceEntry entry{.segment_id = LoadBig<uint64_t>(key), .offset = LoadBig<uint64_t>(key.substr(8))};
  const std::string what = StrCat("place in segment ", entry.segment_id, " at ", entry.offset);
  ESKER_RETURN_IF_ERROR(CheckValue(value, kPlaceValueBytes, what));
  entry.record_bytes = Get<uint64_t>(value, 8);
  entry.hash = GetHash(value, 16);
  if (entry.record_bytes == 0 || entry.record_bytes % kRecordAlignment != 0 ||
      entry.record_bytes > RecordBytes(kMaxChunkBytes) || entry.offset % kRecordAlignment != 0) {
    return Damaged(what, StrCat("a record of ", entry.record_bytes, " bytes can't lie there"));
  }
  return entry;
}

std::string EncodePartValue(const PartEntry& entry) {
  Value value(kPartValueBytes);
  value.Set(8, entry.attempt);
  value.Set(16, entry.raw_bytes);
  value.Set(24, entry.stored_bytes);
  value.Set(32, entry.new_stored_bytes);
  value.Set(40, entry.sealed_unix_ms);
  value.Set(48, entry.part_digest);
  value.Set(64, entry.layout_digest);
  return value.Take();
}

absl::StatusOr<PartEntry> DecodePartValue(std::string_view value) {
  ESKER_RETURN_IF_ERROR(CheckValue(value, kPartValueBytes, "part"));
  return PartEntry{.attempt = Get<uint64_t>(value, 8),
                   .raw_bytes = Get<uint64_t>(value, 16),
                   .stored_bytes = Get<uint64_t>(value, 24),
                   .new_stored_bytes = Get<uint64_t>(value, 32),
                   .sealed_unix_ms = Get<int64_t>(value, 40),
                   .part_digest = GetHash(value, 48),
                   .layout_digest = GetHash(value, 64)};
}

std::string EncodeLayoutRefs(uint64_t refs) {
  Value value(kLayoutRefsBytes);
  value.Set(8, refs);
  return value.Take();
}

absl::StatusOr<uint64_t> DecodeLayoutRefs(std::string_view value) {
  ESKER_RETURN_IF_ERROR(CheckValue(value, kLayoutRefsBytes, "references to a layout"));
  return Get<uint64_t>(value, 8);
}

}  // namespace esker::store
