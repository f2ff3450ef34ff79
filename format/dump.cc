#include "format/dump.h"

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/codec.h"
#include "format/delta.h"
#include "format/dtype.h"
#include "format/hash.h"
#include "format/names.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"

// The numbers here are those of docs/format.md, on purpose not the constants of the encoders.
namespace esker {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kNewestVersion = 1;
constexpr uint64_t kLargestChunk = 4194304;
constexpr size_t kEnvelopeHeader = 24;
constexpr size_t kSegmentHeader = 64;
constexpr size_t kChunkHeader = 80;

std::string Hex(std::string_view bytes) { return absl::BytesToHexString(ToAbsl(bytes)); }
std::string CrcText(uint64_t crc) { return absl::StrFormat("%08x", crc); }

// The fields of one structure in their order. A field that is not what it should be is shown with what was
// expected.
class Fields {
 public:
  explicit Fields(ByteView bytes) : bytes_(bytes) {}

  // The little-endian number of `width` bytes at `at`, byte by byte.
  uint64_t Number(size_t at, size_t width) const {
    uint64_t number = 0;
    for (size_t i = width; i-- > 0;) number = number << 8 | static_cast<uint64_t>(bytes_[at + i]);
    return number;
  }
  std::string_view Text(size_t at, size_t width) const { return AsText(bytes_.subspan(at, width)); }

  void Add(const std::string& name, Json value) { json_[name] = std::move(value); }
  void AddExpecting(const std::string& name, Json found, bool good, Json expected) {
    if (good) return Add(name, std::move(found));
    intact_ = false;
    json_[name] = {{"found", std::move(found)}, {"expected", std::move(expected)}};
  }

  // The fields that every structure has: `structure`, `magic` and `format_version`. False if it is shorter
  // than its header.
  bool AddHead(const std::string& structure, std::string_view magic, size_t header_bytes) {
    Add("structure", structure);
    if (bytes_.size() < header_bytes) {
      AddExpecting("bytes", bytes_.size(), false, StrCat("at least ", header_bytes, ": it is cut short"));
      return false;
    }
    AddExpecting("magic", Printable(Text(0, 4)), Text(0, 4) == magic, std::string(magic));
    const uint64_t version = Number(4, 2);
    AddExpecting("format_version", version, version == kNewestVersion, kNewestVersion);
    return true;
  }
  void AddReserved(const std::string& name, size_t at, size_t width) {
    const uint64_t found = Number(at, width);
    AddExpecting(name, found, found == 0, 0);
  }
  // The CRC-32C at `at` of all the bytes before it.
  void AddHeaderCrc(size_t at) {
    const uint64_t found = Number(at, 4);
    const uint32_t expected = Crc32c(bytes_.first(at));
    AddExpecting("header_crc32c", CrcText(found), found == expected, CrcText(expected));
  }

  bool intact() const { return intact_; }
  Json Finish() {
    json_["intact"] = intact_;
    return std::move(json_);
  }

 private:
  const ByteView bytes_;
  Json json_ = Json::object();
  bool intact_ = true;
};

// --- Envelopes -----------------------------------------------------------------------------------

struct EnvelopeRow {
  char letter;
  const char* structure;
  const google::protobuf::Message* (*prototype)();
};

template <typename Message>
const google::protobuf::Message* PrototypeOf() {
  return &Message::default_instance();
}

constexpr EnvelopeRow kEnvelopes[] = {
    {'L', "layout envelope", PrototypeOf<v1::Layout>},
    {'P', "part envelope", PrototypeOf<v1::Part>},
    {'M', "manifest envelope", PrototypeOf<v1::Manifest>},
    {'R', "run envelope", PrototypeOf<v1::RunRecord>},
    {'V', "save envelope", PrototypeOf<v1::SaveRecord>},
    {'K', "checkpoint envelope", PrototypeOf<v1::CheckpointRecord>},
};

Json MessageToJson(const google::protobuf::Message& message);

// chunk_hashes is many digests in one field; every other field of bytes is one.
Json BytesToJson(const std::string& name, const std::string& bytes) {
  if (name != "chunk_hashes") return Hex(bytes);
  Json list = Json::array();
  for (size_t at = 0; at < bytes.size(); at += 16)
    list.push_back(Hex(std::string_view(bytes).substr(at, 16)));
  return list;
}

// The value of a field, or with `index` >= 0 of one of a repeated field's elements.
Json ValueToJson(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                 int index) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const bool repeated = index >= 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageToJson(repeated ? reflection.GetRepeatedMessage(message, &field, index)
                                    : reflection.GetMessage(message, &field));
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = repeated ? reflection.GetRepeatedString(message, &field, index)
                                        : reflection.GetString(message, &field);
      return field.type() == FieldDescriptor::TYPE_BYTES ? BytesToJson(field.name(), text) : Json(text);
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t number = repeated ? reflection.GetRepeatedUInt64(message, &field, index)
                                       : reflection.GetUInt64(message, &field);
      // What is random, not counted, is fixed64.
      return field.type() == FieldDescriptor::TYPE_FIXED64 ? Json(absl::StrFormat("%016x", number))
                                                           : Json(number);
    }
    case FieldDescriptor::CPPTYPE_UINT32:
      return repeated ? reflection.GetRepeatedUInt32(message, &field, index)
                      : reflection.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return repeated ? reflection.GetRepeatedInt64(message, &field, index)
                      : reflection.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return repeated ? reflection.GetRepeatedBool(message, &field, index)
                      : reflection.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int number = repeated ? reflection.GetRepeatedEnumValue(message, &field, index)
                                  : reflection.GetEnumValue(message, &field);
      const auto* value = field.enum_type()->FindValueByNumber(number);
      return value != nullptr ? Json(value->name()) : Json(number);
    }
    default:
      return StrCat("a field of type ", field.type_name(), ", which no stored message has");
  }
}

// Every field in the order of its tags, also those with their default value.
Json MessageToJson(const google::protobuf::Message& message) {
  Json json = Json::object();
  const google::protobuf::Descriptor& descriptor = *message.GetDescriptor();
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *descriptor.field(i);
    if (field.is_repeated()) {
      Json list = Json::array();
      for (int e = 0; e < reflection.FieldSize(message, &field); ++e)
        list.push_back(ValueToJson(message, field, e));
      json[field.name()] = std::move(list);
    } else if (!field.has_presence() || reflection.HasField(message, &field)) {
      json[field.name()] = ValueToJson(message, field, -1);
    }
  }
  const google::protobuf::UnknownFieldSet& unknown = reflection.GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) json["unknown_tags"].push_back(unknown.field(i).number());
  return json;
}

Json DescribeEnvelope(ByteView bytes, const EnvelopeRow& row) {
  Fields fields(bytes);
  if (!fields.AddHead(row.structure, std::string("ESK") + row.letter, kEnvelopeHeader))
    return fields.Finish();
  fields.AddReserved("reserved", 6, 2);
  const uint64_t body_bytes = fields.Number(8, 8);
  const uint64_t given = bytes.size() - kEnvelopeHeader;
  fields.AddExpecting("body_bytes", body_bytes, body_bytes == given, given);
  const ByteView body = bytes.subspan(kEnvelopeHeader, std::min(body_bytes, given));
  const uint64_t body_crc = fields.Number(16, 4);
  fields.AddExpecting("body_crc32c", CrcText(body_crc), body_crc == Crc32c(body), CrcText(Crc32c(body)));
  fields.AddHeaderCrc(20);
  fields.Add("digest", HashOf(bytes.first(kEnvelopeHeader + body.size())).ToHex());
  const std::unique_ptr<google::protobuf::Message> message(row.prototype()->New());
  const bool parsed =
      body.size() < uint64_t{1} << 31 && message->ParseFromArray(body.data(), static_cast<int>(body.size()));
  fields.AddExpecting("body", parsed ? MessageToJson(*message) : Json("not a message of this kind"), parsed,
                      message->GetDescriptor()->full_name());
  return fields.Finish();
}

// --- Segment headers -----------------------------------------------------------------------------

std::string UuidText(std::string_view bytes) {
  return StrCat(Hex(bytes.substr(0, 4)), "-", Hex(bytes.substr(4, 2)), "-", Hex(bytes.substr(6, 2)), "-",
                Hex(bytes.substr(8, 2)), "-", Hex(bytes.substr(10, 6)));
}

struct SegmentIdentity {
  bool intact = false;
  uint64_t segment_id = 0;
  uint64_t generation = 0;
};

Json DescribeSegmentHeader(ByteView bytes, SegmentIdentity* identity) {
  Fields fields(bytes);
  if (!fields.AddHead("segment header", "ESKS", kSegmentHeader)) return fields.Finish();
  fields.AddReserved("reserved", 6, 2);
  fields.Add("store_id", UuidText(fields.Text(8, 16)));
  identity->segment_id = fields.Number(24, 8);
  identity->generation = fields.Number(32, 8);
  fields.Add("segment_id", identity->segment_id);
  fields.Add("generation", identity->generation);
  const uint64_t segment_bytes = fields.Number(40, 8);
  fields.AddExpecting("segment_bytes", segment_bytes, segment_bytes > kBlock && segment_bytes % kBlock == 0,
                      "a multiple of 4096, at least 8192");
  fields.Add("created_unix_ms", static_cast<int64_t>(fields.Number(48, 8)));
  fields.AddReserved("reserved_2", 56, 4);
  fields.AddHeaderCrc(60);
  identity->intact = fields.intact();
  return fields.Finish();
}

// --- Chunk records -------------------------------------------------------------------------------

// What a chunk header says. `intact`: every field of the header is what it may be.
struct Record {
  bool intact = false;
  Json json;
  std::string hash;
  std::string codec = "?";
  std::string dtype = "?";
  CodecId codec_id = CodecId::kRaw;
  DType dtype_id = DType::kBytes;
  uint64_t payload_offset = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  uint64_t stored_crc = 0;
  uint64_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t offset = 0;

  uint64_t Bytes() const { return (payload_offset + stored_bytes + kBlock - 1) / kBlock * kBlock; }
};

void AddCodecAndDtype(Fields* fields, Record* record) {
  const uint64_t codec_number = fields->Number(6, 1);
  const std::optional<CodecId> codec = CodecFromNumber(codec_number);
  if (codec.has_value()) {
    record->codec_id = *codec;
    record->codec = CodecName(*codec);
  }
  fields->AddExpecting("codec", codec.has_value() ? Json(record->codec) : Json(codec_number),
                       codec.has_value(), "a number of the codec table");
  const uint64_t dtype_number = fields->Number(7, 1);
  const std::optional<DType> dtype = DTypeFromNumber(dtype_number);
  if (dtype.has_value()) {
    record->dtype_id = *dtype;
    record->dtype = DTypeName(*dtype);
  }
  fields->AddExpecting("dtype", dtype.has_value() ? Json(record->dtype) : Json(dtype_number),
                       dtype.has_value(), "a number of the dtype table");
}

void AddLengths(Fields* fields, Record* record) {
  record->payload_offset = fields->Number(8, 4);
  record->stored_crc = fields->Number(12, 4);
  record->raw_bytes = fields->Number(16, 8);
  record->stored_bytes = fields->Number(24, 8);
  const uint64_t expected_offset = record->stored_bytes >= 65536 ? 4096 : 128;
  fields->AddExpecting("payload_offset", record->payload_offset, record->payload_offset == expected_offset,
                       expected_offset);
  fields->Add("stored_crc32c", CrcText(record->stored_crc));
  fields->AddExpecting("raw_bytes", record->raw_bytes,
                       record->raw_bytes >= 1 && record->raw_bytes <= kLargestChunk, "1 to 4194304");
  const bool stored_raw = record->codec == "raw";
  fields->AddExpecting("stored_bytes", record->stored_bytes,
                       record->stored_bytes >= 1 && record->stored_bytes <= record->raw_bytes &&
                           (!stored_raw || record->stored_bytes == record->raw_bytes),
                       stored_raw ? "as many as raw_bytes" : "1 to raw_bytes");
}

Record ReadRecordHeader(ByteView bytes) {
  Record record;
  Fields fields(bytes);
  if (fields.AddHead("chunk record", "ESKC", kChunkHeader)) {
    AddCodecAndDtype(&fields, &record);
    AddLengths(&fields, &record);
    record.hash = Hex(fields.Text(32, 16));
    fields.Add("hash", record.hash);
    record.segment_id = fields.Number(48, 8);
    record.generation = fields.Number(56, 8);
    record.offset = fields.Number(64, 8);
    fields.Add("segment_id", record.segment_id);
    fields.Add("generation", record.generation);
    fields.AddExpecting("offset", record.offset, record.offset % kBlock == 0, "a multiple of 4096");
    fields.AddReserved("reserved", 72, 4);
    fields.AddHeaderCrc(76);
  }
  record.intact = fields.intact();
  record.json = fields.Finish();
  return record;
}

std::string CheckStoredBytes(const Record& record, ByteView stored) {
  const uint32_t crc = Crc32c(stored);
  if (crc == record.stored_crc) return "ok";
  return StrCat("expected CRC-32C ", CrcText(record.stored_crc), ", found ", CrcText(crc));
}

std::string CheckRawHash(const Record& record, ByteView stored) {
  if (record.codec_id == CodecId::kDelta) return "not checked: that takes the base's record";
  std::vector<std::byte> raw(record.raw_bytes);
  const absl::Status status = FindCodec(record.codec_id)->decode(stored, record.dtype_id, raw);
  if (!status.ok()) return std::string(MessageOf(status));
  const std::string hash = HashOf(raw).ToHex();
  return hash == record.hash ? "ok" : StrCat("expected ", record.hash, ", found ", hash);
}

Json DescribeDelta(ByteView stored) {
  const absl::StatusOr<Delta> delta = ParseDelta(stored);
  if (!delta.ok()) return std::string(MessageOf(delta.status()));
  return {{"base", delta->base.ToHex()}, {"difference_codec", delta->codec->name}};
}

Json DescribeRecord(ByteView bytes) {
  Record record = ReadRecordHeader(bytes);
  if (!record.intact) {
    record.json["payload"] = "not checked: the header is damaged";
    return std::move(record.json);
  }
  if (bytes.size() < record.payload_offset + record.stored_bytes) {
    record.json["payload"] = "not checked: it is not among the given bytes";
    return std::move(record.json);
  }
  const ByteView stored = bytes.subspan(record.payload_offset, record.stored_bytes);
  Json& payload = record.json["payload"];
  payload = {{"stored_bytes", CheckStoredBytes(record, stored)}, {"raw_hash", CheckRawHash(record, stored)}};
  if (record.codec_id == CodecId::kDelta) payload["delta"] = DescribeDelta(stored);
  return std::move(record.json);
}

// Text that is not UTF-8 is shown with replacement characters.
std::string ToText(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

// --- Segment files -------------------------------------------------------------------------------

// Walks a segment file's records.
class SegmentWalk {
 public:
  SegmentWalk(std::ifstream* file, const std::string& path, bool deep,
              const std::function<void(const std::string&)>& line)
      : file_(*file), path_(path), deep_(deep), line_(line) {}

  absl::Status Run() {
    ESKER_ASSIGN_OR_RETURN(const ByteView head, Read(0, kBlock));
    const Json header = DescribeSegmentHeader(head, &identity_);
    for (const absl::string_view text : absl::StrSplit(ToText(header), '\n')) line_(std::string(text));
    uint64_t offset = kBlock;
    while (true) {
      ESKER_ASSIGN_OR_RETURN(const ByteView block, Read(offset, kChunkHeader));
      if (block.empty()) break;
      const Record record = ReadRecordHeader(block);
      if (Belongs(record, offset)) {
        EndGap(offset);
        ESKER_RETURN_IF_ERROR(Describe(record, offset));
        offset += record.Bytes();
        continue;
      }
      if (block.size() == kChunkHeader && AsText(block.first(4)) == "ESKC") DescribeStray(record, offset);
      gap_begin_ = std::min(gap_begin_, offset);
      offset += kBlock;
    }
    EndGap(offset);
    line_(StrCat("records=", records_, " damaged=", damaged_, " earlier_generations=", stale_));
    return absl::OkStatus();
  }

 private:
  // Up to `bytes` bytes at `offset`: fewer at the file's end. Good until the next call.
  absl::StatusOr<ByteView> Read(uint64_t offset, uint64_t bytes) {
    buffer_.resize(bytes);
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(reinterpret_cast<char*>(buffer_.data()), static_cast<std::streamsize>(bytes));
    if (file_.bad())
      return absl::UnavailableError(StrCat(path_, ": reading ", bytes, " bytes at ", offset, " failed"));
    return ByteView(buffer_).first(static_cast<size_t>(file_.gcount()));
  }

  // Whether it is a record of this segment's present generation. Where the segment's own header is damaged,
  // any is.
  bool Belongs(const Record& record, uint64_t offset) const {
    if (!record.intact || record.offset != offset) return false;
    if (!identity_.intact) return true;
    return record.segment_id == identity_.segment_id && record.generation == identity_.generation;
  }

  // A header with the right magic number that is damaged, of an earlier generation, or in a wrong place.
  void DescribeStray(const Record& record, uint64_t offset) {
    if (!record.intact) {
      EndGap(offset);
      ++damaged_;
      line_(StrCat("offset=", offset, " header=damaged ",
                   record.json.dump(-1, ' ', false, Json::error_handler_t::replace)));
    } else if (record.segment_id == identity_.segment_id && record.offset == offset) {
      ++stale_;
    } else {
      EndGap(offset);
      ++damaged_;
      line_(StrCat("offset=", offset, " misplaced: the record of segment ", record.segment_id,
                   ", generation ", record.generation, ", offset ", record.offset));
    }
  }

  absl::Status Describe(const Record& record, uint64_t offset) {
    ESKER_ASSIGN_OR_RETURN(const ByteView stored, Read(offset + record.payload_offset, record.stored_bytes));
    std::string payload = "cut short by the file's end";
    std::string raw_hash = "not checked";
    if (stored.size() == record.stored_bytes) {
      payload = CheckStoredBytes(record, stored);
      if (deep_) raw_hash = CheckRawHash(record, stored);
    }
    ++records_;
    if (payload != "ok" || (deep_ && raw_hash != "ok")) ++damaged_;
    line_(StrCat("offset=", offset, " hash=", record.hash, " dtype=", record.dtype, " codec=", record.codec,
                 " raw_bytes=", record.raw_bytes, " stored_bytes=", record.stored_bytes,
                 " generation=", record.generation, " header=ok payload=", payload, deep_ ? " raw_hash=" : "",
                 deep_ ? raw_hash : ""));
    return absl::OkStatus();
  }

  void EndGap(uint64_t end) {
    if (gap_begin_ < end)
      line_(StrCat("offset=", gap_begin_, " no record in the ", end - gap_begin_, " bytes up to ", end));
    gap_begin_ = ~uint64_t{0};
  }

  std::ifstream& file_;
  const std::string& path_;
  const bool deep_;
  const std::function<void(const std::string&)>& line_;

  std::vector<std::byte> buffer_;
  SegmentIdentity identity_;
  uint64_t gap_begin_ = ~uint64_t{0};  // of the blocks without a record that were passed last
  uint64_t records_ = 0;
  uint64_t damaged_ = 0;
  uint64_t stale_ = 0;
};

}  // namespace

absl::StatusOr<std::string> DumpBytes(ByteView bytes) {
  const std::string_view magic = AsText(bytes.first(std::min<size_t>(bytes.size(), 4)));
  if (magic == "ESKC") return ToText(DescribeRecord(bytes));
  if (magic == "ESKS") {
    SegmentIdentity identity;
    return ToText(DescribeSegmentHeader(bytes, &identity));
  }
  for (const EnvelopeRow& row : kEnvelopes) {
    if (magic == std::string("ESK") + row.letter) return ToText(DescribeEnvelope(bytes, row));
  }
  return absl::InvalidArgumentError(
      StrCat("expected a magic number of Esker's (ESKC, ESKS, ESKL, ESKP, ESKM, ESKR, ESKV, ESKK), found \"",
             Printable(magic), "\""));
}

absl::Status DumpSegmentFile(const std::string& path, bool deep,
                             const std::function<void(const std::string&)>& line) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return absl::NotFoundError(StrCat(path, ": can't be opened for reading"));
  return SegmentWalk(&file, path, deep, line).Run();
}

}  // namespace esker
