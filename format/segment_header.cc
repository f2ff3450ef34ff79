#include "format/segment_header.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/envelope.h"
#include "format/hash.h"

namespace esker {
namespace {

constexpr std::string_view kMagic = "ESKS";
constexpr std::string_view kFilePrefix = "segment-";
constexpr std::string_view kFileSuffix = ".esk";

// The header as it lies on disk. Little-endian hosts only (base/bytes.h), so it is copied as it is.
struct RawHeader {
  char magic[4];
  uint16_t version;
  uint16_t reserved;
  uint8_t store_id[16];
  uint64_t segment_id;
  uint64_t generation;
  uint64_t segment_bytes;
  int64_t created_unix_ms;
  uint32_t reserved2;
  uint32_t header_crc32c;
};
static_assert(sizeof(RawHeader) == kSegmentHeaderBytes);
static_assert(offsetof(RawHeader, version) == 4);
static_assert(offsetof(RawHeader, reserved) == 6);
static_assert(offsetof(RawHeader, store_id) == 8);
static_assert(offsetof(RawHeader, segment_id) == 24);
static_assert(offsetof(RawHeader, generation) == 32);
static_assert(offsetof(RawHeader, segment_bytes) == 40);
static_assert(offsetof(RawHeader, created_unix_ms) == 48);
static_assert(offsetof(RawHeader, reserved2) == 56);
static_assert(offsetof(RawHeader, header_crc32c) == 60);
static_assert(kFirstRecordOffset % kRecordAlignment == 0);

absl::Status DamagedHeader(std::string_view what) {
  return absl::DataLossError(StrCat("segment header: ", what));
}

}  // namespace

void EncodeSegmentHeader(const SegmentHeader& header, MutableBytes to) {
  ESKER_CHECK(to.size() >= kFirstRecordOffset);
  ESKER_CHECK(header.segment_bytes > kFirstRecordOffset && header.segment_bytes % kRecordAlignment == 0);
  RawHeader raw = {};
  kMagic.copy(raw.magic, kMagic.size());
  raw.version = kFormatVersion;
  std::copy(header.store_id.begin(), header.store_id.end(), raw.store_id);
  raw.segment_id = header.segment_id;
  raw.generation = header.generation;
  raw.segment_bytes = header.segment_bytes;
  raw.created_unix_ms = header.created_unix_ms;
  raw.header_crc32c = Crc32c(std::as_bytes(std::span(&raw, 1)).first(offsetof(RawHeader, header_crc32c)));
  std::memcpy(to.data(), &raw, sizeof(raw));
  const MutableBytes zeros = to.subspan(sizeof(raw), kFirstRecordOffset - sizeof(raw));
  std::fill(zeros.begin(), zeros.end(), std::byte{0});
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ByteView from) {
  if (from.size() < kSegmentHeaderBytes) {
    return DamagedHeader(
        StrCat("cut short: expected at least ", kSegmentHeaderBytes, " bytes, found ", from.size()));
  }
  RawHeader raw;
  std::memcpy(&raw, from.data(), sizeof(raw));
  if (AsText(from.first(4)) != kMagic) {
    return DamagedHeader(
        absl::StrFormat("expected the magic number \"ESKS\", found the bytes %02x %02x %02x %02x",
                        static_cast<uint8_t>(raw.magic[0]), static_cast<uint8_t>(raw.magic[1]),
                        static_cast<uint8_t>(raw.magic[2]), static_cast<uint8_t>(raw.magic[3])));
  }
  const uint32_t crc = Crc32c(from.first(offsetof(RawHeader, header_crc32c)));
  if (crc != raw.header_crc32c) {
    return DamagedHeader(absl::StrFormat("it says CRC-32C %08x, but has %08x", raw.header_crc32c, crc));
  }
  if (raw.version > kFormatVersion) {
    return absl::UnimplementedError(StrCat("segment header: written in format version ", raw.version,
                                           "; this program reads up to ", kFormatVersion,
                                           ": use a newer one"));
  }
  if (raw.version == 0) return DamagedHeader("expected a format version of 1 or more, found 0");
  if (raw.reserved != 0 || raw.reserved2 != 0) {
    return DamagedHeader(
        StrCat("expected 0 in the reserved bytes, found ", raw.reserved, " and ", raw.reserved2));
  }
  if (raw.segment_bytes <= kFirstRecordOffset || raw.segment_bytes % kRecordAlignment != 0) {
    return DamagedHeader(StrCat("expected a segment of more than ", kFirstRecordOffset,
                                " bytes in whole blocks of ", kRecordAlignment, ", found one of ",
                                raw.segment_bytes));
  }
  SegmentHeader header;
  std::copy(std::begin(raw.store_id), std::end(raw.store_id), header.store_id.begin());
  header.segment_id = raw.segment_id;
  header.generation = raw.generation;
  header.segment_bytes = raw.segment_bytes;
  header.created_unix_ms = raw.created_unix_ms;
  return header;
}

std::string SegmentFileName(uint64_t segment_id) {
  return absl::StrFormat("%s%016x%s", kFilePrefix, segment_id, kFileSuffix);
}

std::optional<uint64_t> SegmentIdFromFileName(std::string_view name) {
  constexpr size_t kDigits = 16;
  if (name.size() != kFilePrefix.size() + kDigits + kFileSuffix.size()) return std::nullopt;
  uint64_t id = 0;
  if (!absl::SimpleHexAtoi(ToAbsl(name.substr(kFilePrefix.size(), kDigits)), &id)) return std::nullopt;
  // Written again and compared, so that every id has exactly one name.
  if (SegmentFileName(id) != name) return std::nullopt;
  return id;
}

}  // namespace esker
