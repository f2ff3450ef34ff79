#include "tests/fuzz/targets.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "format/base/status.h"
#include "format/chunk_record.h"
#include "format/codec.h"
#include "format/delta.h"
#include "format/dump.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "format/hash.h"
#include "format/layout.h"
#include "format/planes.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"
#include "format/segment_header.h"
#include "format/shard_index.h"

namespace esker::fuzz {
namespace {

// Several blocks of the codec `planes`; small enough to be quick.
constexpr size_t kMaxRawBytes = 3 * kPlanesBlockBytes;

// A view of exactly the bytes that are left, on the heap: ASan sees whoever reads on.
std::vector<std::byte> Copy(ByteView bytes) { return {bytes.begin(), bytes.end()}; }

// What damaged input may be answered with.
void CheckRefusal(const absl::Status& status) {
  ESKER_CHECK(status.ok() || status.code() == absl::StatusCode::kDataLoss ||
              status.code() == absl::StatusCode::kInvalidArgument ||
              status.code() == absl::StatusCode::kUnimplemented);
}

// --- Codecs: a dtype, a length of four bytes, the stored bytes -----------------------------------

struct CodecInput {
  DType dtype;
  size_t raw_bytes;
  std::vector<std::byte> stored;
};

std::optional<CodecInput> ReadCodecInput(ByteView input) {
  if (input.size() < 5) return std::nullopt;
  const auto number = static_cast<uint8_t>(input[0]);
  return CodecInput{DTypeFromNumber(number % kDTypeCount).value(),
                    LoadLittle<uint32_t>(input.data() + 1) % (kMaxRawBytes + 1), Copy(input.subspan(5))};
}

void Decode(CodecId id, ByteView input) {
  const auto codec_input = ReadCodecInput(input);
  if (!codec_input.has_value()) return;
  std::vector<std::byte> raw(codec_input->raw_bytes);
  CheckRefusal(FindCodec(id)->decode(codec_input->stored, codec_input->dtype, raw));
}

void DecodeZstd(ByteView input) { Decode(CodecId::kZstd, input); }
void DecodePlanesChunk(ByteView input) { Decode(CodecId::kPlanes, input); }

// A part of a chunk is the same as in the whole of it, if that decodes.
void DecodePlanesPart(ByteView input) {
  const auto codec_input = ReadCodecInput(input);
  if (!codec_input.has_value()) return;
  const auto& [dtype, raw_bytes, stored] = *codec_input;
  const size_t offset = raw_bytes / 3;
  std::vector<std::byte> part(raw_bytes / 2);
  const absl::Status status = DecodePlanesRange(stored, dtype, raw_bytes, offset, part);
  CheckRefusal(status);
  std::vector<std::byte> whole(raw_bytes);
  if (!DecodePlanes(stored, dtype, whole).ok()) return;
  ESKER_CHECK(status.ok() &&
              std::equal(part.begin(), part.end(), whole.begin() + static_cast<ptrdiff_t>(offset)));
}

// What follows the length is repeated until there are so many raw bytes: they must come back.
void RoundTripPlanes(ByteView input) {
  const auto codec_input = ReadCodecInput(input);
  if (!codec_input.has_value() || codec_input->stored.empty()) return;
  // At most a block and a bit of a second, to be quick.
  std::vector<std::byte> raw(codec_input->raw_bytes % (kPlanesBlockBytes + 100));
  for (size_t i = 0; i < raw.size(); ++i) raw[i] = codec_input->stored[i % codec_input->stored.size()];
  std::vector<std::byte> stored;
  if (!EncodePlanes(raw, codec_input->dtype, &stored)) return;
  ESKER_CHECK(stored.size() < raw.size());
  stored.shrink_to_fit();
  std::vector<std::byte> back(raw.size());
  ESKER_CHECK(DecodePlanes(stored, codec_input->dtype, back).ok());
  ESKER_CHECK(back == raw);
}

// As a server reads it, whatever its base is.
void DecodeDelta(ByteView input) {
  const auto codec_input = ReadCodecInput(input);
  if (!codec_input.has_value()) return;
  const auto& [dtype, raw_bytes, stored] = *codec_input;
  const absl::StatusOr<Delta> delta = ParseDelta(stored);
  CheckRefusal(delta.status());
  if (!delta.ok()) return;
  std::vector<std::byte> raw(raw_bytes);
  const absl::Status decoded = delta->codec->decode(delta->difference, dtype, raw);
  CheckRefusal(decoded);
  if (!decoded.ok()) return;
  const std::vector<std::byte> difference = raw;
  const std::vector<std::byte> base(raw_bytes, std::byte{0x5A});
  XorInto(raw, base);
  XorInto(raw, base);
  ESKER_CHECK(raw == difference);
}

// What follows the length is repeated until there is a base, and changes some of it.
void RoundTripDelta(ByteView input) {
  const auto codec_input = ReadCodecInput(input);
  if (!codec_input.has_value() || codec_input->stored.empty()) return;
  const std::vector<std::byte>& pattern = codec_input->stored;
  std::vector<std::byte> base(codec_input->raw_bytes % (kPlanesBlockBytes + 100));
  for (size_t i = 0; i < base.size(); ++i) base[i] = pattern[i % pattern.size()];
  std::vector<std::byte> raw = base;
  for (size_t i = 0; i < raw.size(); i += 1 + static_cast<size_t>(pattern[0]))
    raw[i] ^= pattern[i % pattern.size()];
  const Hash128 base_hash = HashOf(base);
  for (const CodecId id : {CodecId::kRaw, CodecId::kZstd, CodecId::kPlanes}) {
    std::vector<std::byte> stored;
    if (!EncodeDelta(*FindCodec(id), raw, base, base_hash, codec_input->dtype, &stored)) continue;
    ESKER_CHECK(stored.size() < raw.size());
    stored.shrink_to_fit();
    const absl::StatusOr<Delta> delta = ParseDelta(stored);
    ESKER_CHECK(delta.ok() && delta->base == base_hash && delta->codec->id == id);
    std::vector<std::byte> back(raw.size());
    ESKER_CHECK(delta->codec->decode(delta->difference, codec_input->dtype, back).ok());
    XorInto(back, base);
    ESKER_CHECK(back == raw);
  }
}

// --- Headers: as they are, and once more with a right checksum, which no fuzzer finds -------------

std::vector<std::byte> WithCrc(ByteView input, size_t crc_offset) {
  std::vector<std::byte> bytes = Copy(input);
  if (bytes.size() >= crc_offset + sizeof(uint32_t)) {
    StoreLittle<uint32_t>(bytes.data() + crc_offset, Crc32c(ByteView(bytes).first(crc_offset)));
  }
  return bytes;
}

void CheckChunkHeader(ByteView bytes) {
  const absl::StatusOr<ChunkHeader> header = DecodeChunkHeader(bytes);
  CheckRefusal(header.status());
  if (!header.ok()) return;
  ESKER_CHECK(ValidateChunkInfo(header->info).ok());
  CheckRefusal(CheckRecord(bytes, header->place, header->info.hash).status());
  std::vector<std::byte> again(header->payload_offset);
  EncodeChunkHeader(header->info, header->place, again);
  ESKER_CHECK(std::equal(again.begin(), again.begin() + kChunkHeaderBytes, bytes.begin()));
}

void DecodeChunkRecord(ByteView input) {
  CheckChunkHeader(Copy(input));
  CheckChunkHeader(WithCrc(input, kChunkHeaderBytes - sizeof(uint32_t)));
}

void CheckSegmentHeader(ByteView bytes) {
  const absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader(bytes);
  CheckRefusal(header.status());
  if (!header.ok()) return;
  std::vector<std::byte> again(kFirstRecordOffset);
  EncodeSegmentHeader(*header, again);
  ESKER_CHECK(std::equal(again.begin(), again.begin() + kSegmentHeaderBytes, bytes.begin()));
}

void DecodeSegment(ByteView input) {
  CheckSegmentHeader(Copy(input));
  CheckSegmentHeader(WithCrc(input, kSegmentHeaderBytes - sizeof(uint32_t)));
}

// --- Envelopes -----------------------------------------------------------------------------------

template <typename Message>
void DecodeAs(EnvelopeKind kind, ByteView input) {
  CheckRefusal(DecodeEnvelope<Message>(kind, AsText(input)).status());
  // The body alone, in an envelope that is right.
  CheckRefusal(DecodeEnvelope<Message>(kind, WrapEnvelope(kind, AsText(input))).status());
}

void DecodeEnvelopes(ByteView input) {
  const google::protobuf::LogSilencer quiet;  // of texts that are no UTF-8
  DecodeAs<v1::Layout>(EnvelopeKind::kLayout, input);
  DecodeAs<v1::Part>(EnvelopeKind::kPart, input);
  DecodeAs<v1::Manifest>(EnvelopeKind::kManifest, input);
  DecodeAs<v1::RunRecord>(EnvelopeKind::kRun, input);
  DecodeAs<v1::SaveRecord>(EnvelopeKind::kSave, input);
  DecodeAs<v1::CheckpointRecord>(EnvelopeKind::kCheckpoint, input);
}

// --- Layouts and parts: the layout's length of two bytes, its message, a part's message -----------

void CheckIndex(const v1::Layout& layout) {
  ShardIndex index;
  CheckRefusal(index.Add(0, layout));
  index.Finish();
  for (const std::string& name : index.TensorNames()) {
    const TensorShards* const shards = index.Find(name);
    ESKER_CHECK(shards != nullptr);
    // Each stored shard can be read as it is stored.
    for (const StoredShard& shard : shards->shards()) ESKER_CHECK(shards->Plan(shard.box, 0).ok());
  }
}

void DecodeLayout(ByteView input) {
  if (input.size() < 2) return;
  const size_t layout_bytes = std::min<size_t>(LoadLittle<uint16_t>(input.data()), input.size() - 2);
  const std::string_view text = AsText(input.subspan(2));
  const google::protobuf::LogSilencer quiet;
  v1::Layout layout;
  if (!layout.ParseFromString(std::string(text.substr(0, layout_bytes)))) return;
  const absl::Status valid = ValidateLayout(layout);
  CheckRefusal(valid);
  if (!valid.ok()) return;
  CheckIndex(layout);
  v1::Part part;
  if (!part.ParseFromString(std::string(text.substr(layout_bytes)))) return;
  if (!ValidatePart(part, layout).ok()) return;
  const PartMap map(part, layout);
  for (size_t i = 0; i < map.chunks().size(); ++i) ESKER_CHECK(map.ChunkAt(map.chunks()[i].part_offset) == i);
}

// --- Frames on the wire, and the dump ------------------------------------------------------------

void DecodeFrames(ByteView input) {
  const std::vector<std::byte> frame = Copy(input);
  CheckRefusal(DecodeFramePrefix(frame).status());
  CheckRefusal(DecodeHello(frame).status());
  CheckRefusal(DecodeWant(frame).status());
  absl::Status carried;
  CheckRefusal(DecodeStatusFrame(frame, &carried));
  const absl::StatusOr<ChunkInfo> info = DecodeChunkFrame(frame);
  CheckRefusal(info.status());
  if (info.ok()) ESKER_CHECK(ValidateChunkInfo(*info).ok());
}

void Dump(ByteView input) {
  const google::protobuf::LogSilencer quiet;
  CheckRefusal(DumpBytes(Copy(input)).status());
}

constexpr Target kTargets[] = {
    {"zstd", DecodeZstd},
    {"planes", DecodePlanesChunk},
    {"planes_range", DecodePlanesPart},
    {"planes_round_trip", RoundTripPlanes},
    {"delta", DecodeDelta},
    {"delta_round_trip", RoundTripDelta},
    {"chunk_record", DecodeChunkRecord},
    {"segment_header", DecodeSegment},
    {"envelope", DecodeEnvelopes},
    {"layout", DecodeLayout},
    {"frame", DecodeFrames},
    {"dump", Dump},
};

}  // namespace

std::span<const Target> AllTargets() { return kTargets; }

}  // namespace esker::fuzz
