#include "format/chunk_record.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"

namespace esker {
namespace {

constexpr std::string_view kMagic = "ESKC";
// A payload of this many bytes or more begins at a block of its own.
constexpr uint64_t kLargePayloadBytes = 64 << 10;
constexpr uint64_t kSmallPayloadOffset = 128;

// The header as it lies on disk. Little-endian hosts only (base/bytes.h), so it is copied as it is.
struct RawHeader {
  char magic[4];
  uint16_t version;
  uint8_t codec;
  uint8_t dtype;
  uint32_t payload_offset;
  uint32_t stored_crc32c;
  uint64_t raw_bytes;
  uint64_t stored_bytes;
  uint8_t hash[16];
  uint64_t segment_id;
  uint64_t generation;
  uint64_t offset;
  uint32_t reserved;
  uint32_t header_crc32c;
};
static_assert(sizeof(RawHeader) == kChunkHeaderBytes);
static_assert(offsetof(RawHeader, version) == 4);
static_assert(offsetof(RawHeader, codec) == 6);
static_assert(offsetof(RawHeader, dtype) == 7);
static_assert(offsetof(RawHeader, payload_offset) == 8);
static_assert(offsetof(RawHeader, stored_crc32c) == 12);
static_assert(offsetof(RawHeader, raw_bytes) == 16);
static_assert(offsetof(RawHeader, stored_bytes) == 24);
static_assert(offsetof(RawHeader, hash) == 32);
static_assert(offsetof(RawHeader, segment_id) == 48);
static_assert(offsetof(RawHeader, generation) == 56);
static_assert(offsetof(RawHeader, offset) == 64);
static_assert(offsetof(RawHeader, reserved) == 72);
static_assert(offsetof(RawHeader, header_crc32c) == 76);

absl::Status Damaged(std::string_view what) { return absl::DataLossError(StrCat("chunk record: ", what)); }

// Magic number, checksum, version and reserved bytes.
absl::Status CheckFrame(const RawHeader& raw, ByteView bytes) {
  if (AsText(bytes.first(4)) != kMagic) {
    return Damaged(absl::StrFormat("expected the magic number \"ESKC\", found the bytes %02x %02x %02x %02x",
                                   static_cast<uint8_t>(raw.magic[0]), static_cast<uint8_t>(raw.magic[1]),
                                   static_cast<uint8_t>(raw.magic[2]), static_cast<uint8_t>(raw.magic[3])));
  }
  const uint32_t crc = Crc32c(bytes.first(offsetof(RawHeader, header_crc32c)));
  if (crc != raw.header_crc32c) {
    return Damaged(
        absl::StrFormat("its header is damaged: it says CRC-32C %08x, but has %08x", raw.header_crc32c, crc));
  }
  if (raw.version > kFormatVersion) {
    return absl::UnimplementedError(StrCat("chunk record: written in format version ", raw.version,
                                           "; this program reads up to ", kFormatVersion,
                                           ": use a newer one"));
  }
  if (raw.version == 0) return Damaged("expected a format version of 1 or more, found 0");
  if (raw.reserved != 0) return Damaged(StrCat("expected 0 in the reserved bytes, found ", raw.reserved));
  return absl::OkStatus();
}

std::string PlaceText(const RecordPlace& place) {
  return StrCat("segment ", place.segment_id, ", generation ", place.generation, ", offset ", place.offset);
}

}  // namespace

absl::Status ValidateChunkInfo(const ChunkInfo& info) {
  const auto codec = static_cast<uint64_t>(info.codec);
  if (!CodecFromNumber(codec).has_value()) {
    return absl::InvalidArgumentError(
        StrCat("chunk: codec number ", codec, " is not in this version's table"));
  }
  const auto dtype = static_cast<uint64_t>(info.dtype);
  if (!DTypeFromNumber(dtype).has_value()) {
    return absl::InvalidArgumentError(
        StrCat("chunk: dtype number ", dtype, " is not in this version's table"));
  }
  if (info.raw_bytes == 0 || info.raw_bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(
        StrCat("chunk: expected 1 to ", kMaxChunkBytes, " raw bytes, found ", info.raw_bytes));
  }
  if (info.raw_bytes % ElementBytes(info.dtype) != 0) {
    return absl::InvalidArgumentError(StrCat("chunk: expected whole elements of ", ElementBytes(info.dtype),
                                             " bytes (", DTypeName(info.dtype), "), found ", info.raw_bytes,
                                             " raw bytes"));
  }
  if (info.stored_bytes == 0 || info.stored_bytes > info.raw_bytes) {
    return absl::InvalidArgumentError(
        StrCat("chunk: expected 1 to ", info.raw_bytes, " stored bytes, found ", info.stored_bytes));
  }
  if (info.codec == CodecId::kRaw && info.stored_bytes != info.raw_bytes) {
    return absl::InvalidArgumentError(StrCat("chunk: stored raw, so expected as many stored as raw bytes (",
                                             info.raw_bytes, "), found ", info.stored_bytes));
  }
  return absl::OkStatus();
}

uint64_t PayloadOffset(uint64_t stored_bytes) {
  return stored_bytes >= kLargePayloadBytes ? kRecordAlignment : kSmallPayloadOffset;
}

uint64_t RecordBytes(uint64_t stored_bytes) {
  return RoundUp(PayloadOffset(stored_bytes) + stored_bytes, kRecordAlignment);
}

void EncodeChunkHeader(const ChunkInfo& info, const RecordPlace& place, MutableBytes to) {
  ESKER_CHECK(ValidateChunkInfo(info).ok());
  ESKER_CHECK(place.offset % kRecordAlignment == 0);
  const uint64_t payload_offset = PayloadOffset(info.stored_bytes);
  ESKER_CHECK(to.size() >= payload_offset);
  RawHeader raw = {};
  kMagic.copy(raw.magic, kMagic.size());
  raw.version = kFormatVersion;
  raw.codec = static_cast<uint8_t>(info.codec);
  raw.dtype = static_cast<uint8_t>(info.dtype);
  raw.payload_offset = static_cast<uint32_t>(payload_offset);
  raw.stored_crc32c = info.stored_crc32c;
  raw.raw_bytes = info.raw_bytes;
  raw.stored_bytes = info.stored_bytes;
  std::memcpy(raw.hash, info.hash.bytes.data(), sizeof(raw.hash));
  raw.segment_id = place.segment_id;
  raw.generation = place.generation;
  raw.offset = place.offset;
  raw.header_crc32c = Crc32c(std::as_bytes(std::span(&raw, 1)).first(offsetof(RawHeader, header_crc32c)));
  std::memcpy(to.data(), &raw, sizeof(raw));
  const MutableBytes zeros = to.subspan(sizeof(raw), payload_offset - sizeof(raw));
  std::fill(zeros.begin(), zeros.end(), std::byte{0});
}

absl::StatusOr<ChunkHeader> DecodeChunkHeader(ByteView from) {
  if (from.size() < kChunkHeaderBytes) {
    return Damaged(StrCat("cut short: expected at least ", kChunkHeaderBytes, " bytes, found ", from.size()));
  }
  RawHeader raw;
  std::memcpy(&raw, from.data(), sizeof(raw));
  ESKER_RETURN_IF_ERROR(CheckFrame(raw, from));
  // The checksum holds, so an unknown number is a newer writer's and not damage.
  if (!CodecFromNumber(raw.codec).has_value() || !DTypeFromNumber(raw.dtype).has_value()) {
    return absl::UnimplementedError(StrCat("chunk record: codec ", raw.codec, " or dtype ", raw.dtype,
                                           " is not in this program's tables: use a newer one"));
  }
  ChunkHeader header;
  header.info.codec = static_cast<CodecId>(raw.codec);
  header.info.dtype = static_cast<DType>(raw.dtype);
  header.info.raw_bytes = raw.raw_bytes;
  header.info.stored_bytes = raw.stored_bytes;
  header.info.stored_crc32c = raw.stored_crc32c;
  std::memcpy(header.info.hash.bytes.data(), raw.hash, sizeof(raw.hash));
  header.place = {raw.segment_id, raw.generation, raw.offset};
  header.payload_offset = raw.payload_offset;
  if (absl::Status status = ValidateChunkInfo(header.info); !status.ok()) return Damaged(MessageOf(status));
  if (raw.payload_offset != PayloadOffset(raw.stored_bytes)) {
    return Damaged(StrCat("expected ", raw.stored_bytes, " stored bytes at ", PayloadOffset(raw.stored_bytes),
                          ", the header says at ", raw.payload_offset));
  }
  if (raw.offset % kRecordAlignment != 0) {
    return Damaged(
        StrCat("expected an offset that is a multiple of ", kRecordAlignment, ", found ", raw.offset));
  }
  return header;
}

absl::StatusOr<ChunkHeader> CheckRecord(ByteView record, const RecordPlace& place, const Hash128& hash) {
  absl::StatusOr<ChunkHeader> header = DecodeChunkHeader(record);
  if (!header.ok()) return Annotate(header.status(), PlaceText(place));
  if (header->place != place) {
    return Damaged(
        StrCat("expected the record of ", PlaceText(place), ", found that of ", PlaceText(header->place)));
  }
  if (header->info.hash != hash) {
    return Damaged(StrCat(PlaceText(place), ": expected chunk ", hash.ToHex(), ", found chunk ",
                          header->info.hash.ToHex()));
  }
  const uint64_t end = header->payload_offset + header->info.stored_bytes;
  if (record.size() < end) {
    return Damaged(StrCat(PlaceText(place), ": cut short: expected ", end, " bytes, found ", record.size()));
  }
  const uint32_t crc = Crc32c(record.subspan(header->payload_offset, header->info.stored_bytes));
  if (crc != header->info.stored_crc32c) {
    return Damaged(
        absl::StrFormat("%s: chunk %s: its stored bytes are damaged: expected CRC-32C %08x, found %08x",
                        PlaceText(place), hash.ToHex(), header->info.stored_crc32c, crc));
  }
  return header;
}

}  // namespace esker
