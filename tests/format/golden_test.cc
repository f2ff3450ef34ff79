// The worked examples of docs/format.md, byte by byte: a change of the format breaks a test here, and so does
// a page that says something else than the code does. One checkpoint runs through all of them.

#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/delta.h"
#include "format/dump.h"
#include "format/envelope.h"
#include "format/frame.h"
#include "format/layout.h"
#include "format/names.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"
#include "format/proto/service.pb.h"
#include "format/segment_header.h"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSaveId = 0x1122334455667788;
constexpr int64_t kBegun = 1700000000000;

const std::string& Page() {
  static const std::string page = [] {
    std::ifstream file(ESKER_SOURCE_DIR "/docs/format.md");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }();
  return page;
}

// The lines of the page's block that begins with "```" and this title.
std::string Block(const std::string& title) {
  const std::string opening = "\n```" + title + "\n";
  const size_t begin = Page().find(opening);
  if (begin == std::string::npos) return "";
  const size_t end = Page().find("\n```", begin + opening.size() - 1);
  return Page().substr(begin + opening.size(), end + 1 - begin - opening.size());
}

std::string HexLines(ByteView bytes) {
  std::string lines;
  for (size_t at = 0; at < bytes.size(); at += 16) {
    absl::StrAppendFormat(&lines, "%08x ", at);
    for (size_t i = at; i < std::min(at + 16, bytes.size()); ++i)
      absl::StrAppendFormat(&lines, " %02x", static_cast<uint8_t>(bytes[i]));
    lines += "\n";
  }
  return lines;
}

std::string BytesOfHexLines(const std::string& lines) {
  std::string bytes;
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    for (size_t i = 1; i < words.size(); ++i) bytes += static_cast<char>(std::stoi(words[i], nullptr, 16));
  }
  return bytes;
}

// That the page shows exactly these bytes under this name.
void ExpectHex(const std::string& name, std::string_view bytes) {
  const std::string expected = HexLines(AsBytes(bytes));
  EXPECT_EQ(Block("hex " + name), expected) << "docs/format.md should say:\n```hex " << name << "\n"
                                            << expected << "```";
}

// That `esker dump` prints what the page says it does.
void ExpectDump(const std::string& name, std::string_view bytes) {
  ASSERT_OK_AND_ASSIGN(std::string expected, DumpBytes(AsBytes(bytes)));
  expected += "\n";
  EXPECT_EQ(Block("json " + name), expected) << "docs/format.md should say:\n```json " << name << "\n"
                                             << expected << "```";
}

// --- The example ---------------------------------------------------------------------------------

// The tensor: 1.0, 2.0, -0.5 and 0.0 as BF16.
const std::string kTensorBytes("\x80\x3f\x00\x40\x00\xbf\x00\x00", 8);
const std::string kItemBytes = "rng";

SegmentHeader ExampleSegment() {
  SegmentHeader header;
  for (size_t i = 0; i < header.store_id.size(); ++i) header.store_id[i] = static_cast<uint8_t>(0xA0 + i);
  header.segment_id = 7;
  header.generation = 3;
  header.segment_bytes = 256 << 20;
  header.created_unix_ms = kBegun;
  return header;
}

ChunkInfo ExampleChunk() {
  ChunkInfo info;
  info.hash = HashOf(AsBytes(kTensorBytes));
  info.dtype = DType::kBF16;
  info.raw_bytes = kTensorBytes.size();
  info.stored_bytes = kTensorBytes.size();
  info.stored_crc32c = Crc32c(AsBytes(kTensorBytes));
  return info;
}

constexpr RecordPlace kPlace = {.segment_id = 7, .generation = 3, .offset = 4096};

std::string ExampleRecord() {
  std::string record(RecordBytes(kTensorBytes.size()), '\0');
  EncodeChunkHeader(ExampleChunk(), kPlace, {reinterpret_cast<std::byte*>(record.data()), record.size()});
  return record.replace(PayloadOffset(kTensorBytes.size()), kTensorBytes.size(), kTensorBytes);
}

std::string ExampleLayout() {
  const ShardSpec weights = {"w", DType::kBF16, {4, 2}, {{2, 0}, {2, 2}}};
  const ShardSpec empty = {"bias", DType::kF32, {0}, {{0}, {0}}};
  absl::StatusOr<v1::Layout> layout = BuildLayout({weights, empty}, {"rng"}, kMaxChunkBytes);
  EXPECT_OK(layout);
  return EncodeEnvelope(EnvelopeKind::kLayout, *layout);
}

std::string Digest(const std::string& envelope) { return std::string(HashOf(AsBytes(envelope)).AsText()); }

// The fields that a part, a manifest, a save and a checkpoint have in common.
template <typename Message>
Message Identified() {
  Message message;
  message.set_run("demo");
  message.set_step(5);
  message.set_attempt(2);
  message.set_save_id(kSaveId);
  return message;
}

std::string ExamplePart() {
  auto part = Identified<v1::Part>();
  part.set_rank(1);
  part.set_layout_digest(Digest(ExampleLayout()));
  part.set_chunk_hashes(StrCat(ExampleChunk().hash.AsText(), HashOf(AsBytes(kItemBytes)).AsText()));
  part.add_item_bytes(kItemBytes.size());
  part.add_item_chunk_raw_bytes(kItemBytes.size());
  part.set_raw_bytes(kTensorBytes.size() + kItemBytes.size());
  return EncodeEnvelope(EnvelopeKind::kPart, part);
}

std::string ExampleManifest() {
  auto manifest = Identified<v1::Manifest>();
  manifest.set_world_size(2);
  manifest.set_committed_unix_ms(kBegun + 1500);
  v1::ServerInfo* server = manifest.add_servers();
  server->set_id("a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
  server->set_address("10.0.0.1:7070");
  for (uint32_t rank = 0; rank < 2; ++rank) {
    v1::PartEntry* entry = manifest.add_parts();
    entry->set_rank(rank);
    entry->set_part_digest(rank == 1 ? Digest(ExamplePart()) : std::string(16, '\x11'));
    entry->set_layout_digest(rank == 1 ? Digest(ExampleLayout()) : std::string(16, '\x22'));
    entry->set_raw_bytes(11);
    entry->set_stored_bytes(11);
    entry->set_new_stored_bytes(rank == 1 ? 3 : 11);
    entry->set_unchanged_bytes(rank == 1 ? 8 : 0);
    entry->set_codec(rank == 1 ? 2 : 0);
    entry->add_servers(0);
  }
  return EncodeEnvelope(EnvelopeKind::kManifest, manifest);
}

std::string ExampleRun() {
  v1::RunRecord run;
  run.set_run("demo");
  run.set_attempt(2);
  for (uint64_t attempt = 1; attempt <= 2; ++attempt) {
    v1::Incarnation* incarnation = run.add_incarnations();
    incarnation->set_token(StrCat("job-", attempt));
    incarnation->set_attempt(attempt);
    incarnation->set_opened_unix_ms(kBegun - 5000 + static_cast<int64_t>(attempt));
  }
  run.set_created_unix_ms(kBegun - 5000);
  run.mutable_retention()->set_keep_last(3);
  run.mutable_retention()->set_keep_within_ms(3600000);
  return EncodeEnvelope(EnvelopeKind::kRun, run);
}

std::string ExampleSave() {
  auto save = Identified<v1::SaveRecord>();
  save.set_world_size(2);
  save.set_state(v1::SaveRecord::ABORTED);
  save.set_begun_unix_ms(kBegun);
  save.set_reason("rank 0 is gone");
  save.set_ended_unix_ms(kBegun + 60000);
  return EncodeEnvelope(EnvelopeKind::kSave, save);
}

std::string ExampleCheckpoint() {
  auto checkpoint = Identified<v1::CheckpointRecord>();
  checkpoint.set_world_size(2);
  checkpoint.set_state(v1::CheckpointRecord::COMMITTED);
  checkpoint.set_begun_unix_ms(kBegun);
  checkpoint.set_committed_unix_ms(kBegun + 1500);
  checkpoint.set_manifest_digest(Digest(ExampleManifest()));
  checkpoint.set_raw_bytes(22);
  checkpoint.set_stored_bytes(22);
  checkpoint.set_new_stored_bytes(14);
  checkpoint.set_pinned(true);
  checkpoint.set_pin_note("for the paper");
  checkpoint.set_unchanged_bytes(8);
  return EncodeEnvelope(EnvelopeKind::kCheckpoint, checkpoint);
}

// --- Its bytes -----------------------------------------------------------------------------------

TEST(Golden, SegmentHeader) {
  std::string block(kFirstRecordOffset, '\xee');
  EncodeSegmentHeader(ExampleSegment(), {reinterpret_cast<std::byte*>(block.data()), block.size()});
  EXPECT_EQ(block.substr(kSegmentHeaderBytes), std::string(kFirstRecordOffset - kSegmentHeaderBytes, '\0'));
  const std::string header = block.substr(0, kSegmentHeaderBytes);
  ExpectHex("segment-header", header);
  ExpectDump("segment-header", header);
  ASSERT_OK_AND_ASSIGN(const SegmentHeader back,
                       DecodeSegmentHeader(AsBytes(BytesOfHexLines(Block("hex segment-header")))));
  EXPECT_EQ(back, ExampleSegment());
}

TEST(Golden, ChunkRecord) {
  const std::string record = ExampleRecord();
  const size_t end = PayloadOffset(kTensorBytes.size()) + kTensorBytes.size();
  EXPECT_EQ(record.substr(end), std::string(kRecordAlignment - end, '\0'));
  ExpectHex("chunk-record", record.substr(0, end));
  ExpectDump("chunk-record", record);
  EXPECT_OK(CheckRecord(AsBytes(BytesOfHexLines(Block("hex chunk-record"))), kPlace, ExampleChunk().hash));
}

TEST(Golden, Layout) {
  ExpectHex("layout", ExampleLayout());
  ExpectDump("layout", ExampleLayout());
  ASSERT_OK_AND_ASSIGN(
      const v1::Layout layout,
      DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, BytesOfHexLines(Block("hex layout"))));
  EXPECT_OK(ValidateLayout(layout));
}

TEST(Golden, Part) {
  ExpectHex("part", ExamplePart());
  ExpectDump("part", ExamplePart());
  ASSERT_OK_AND_ASSIGN(const v1::Layout layout,
                       DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, ExampleLayout()));
  ASSERT_OK_AND_ASSIGN(const v1::Part part,
                       DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, BytesOfHexLines(Block("hex part"))));
  EXPECT_OK(ValidatePart(part, layout));
}

TEST(Golden, Manifest) {
  ExpectHex("manifest", ExampleManifest());
  ExpectDump("manifest", ExampleManifest());
}

TEST(Golden, Run) {
  ExpectHex("run", ExampleRun());
  ExpectDump("run", ExampleRun());
}

TEST(Golden, Save) {
  ExpectHex("save", ExampleSave());
  ExpectDump("save", ExampleSave());
}

TEST(Golden, Checkpoint) {
  ExpectHex("checkpoint", ExampleCheckpoint());
  ExpectDump("checkpoint", ExampleCheckpoint());
}

TEST(Golden, Frames) {
  auto save = Identified<v1::SaveContext>();
  save.set_rank(1);
  ExpectHex("frame-hello-put", EncodeHello(SerializeDeterministic(save)));
  std::string lease(8, '\0');
  StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(lease.data()), 0x0123456789abcdef);
  ExpectHex("frame-hello-get", EncodeHello(lease));
  ExpectHex("frame-chunk", EncodeChunkFrame(9, ExampleChunk()));
  ExpectHex("frame-ack", EncodeAck(9, absl::OkStatus()));
  ExpectHex("frame-want", EncodeWant(10, ExampleChunk().hash));
  ExpectHex("frame-error", EncodeErrorFrame(10, absl::DataLossError("damaged")));
}

// The encoder's bytes may differ from one version of libzstd to the next; what they decode to may not.
TEST(Golden, ZstdChunkDecodes) {
  const std::string stored = BytesOfHexLines(Block("hex zstd-chunk"));
  std::vector<std::byte> raw(64);
  ASSERT_OK(FindCodec(CodecId::kZstd)->decode(AsBytes(stored), DType::kF32, raw));
  EXPECT_EQ(AsText(raw), std::string(64, '\0'));
}

// As the page describes them, in bits: sign, exponent, mantissa.
std::vector<std::byte> PlanesExample() {
  std::vector<std::byte> raw(128);
  for (uint32_t i = 0; i < 64; ++i) {
    StoreLittle<uint16_t>(raw.data() + 2 * i,
                          static_cast<uint16_t>(i % 2 << 15 | (127 - i % 2) << 7 | 37 * i % 128));
  }
  return raw;
}

TEST(Golden, PlanesChunkDecodes) {
  const std::string stored = BytesOfHexLines(Block("hex planes-chunk"));
  std::vector<std::byte> raw(128);
  ASSERT_OK(FindCodec(CodecId::kPlanes)->decode(AsBytes(stored), DType::kBF16, raw));
  EXPECT_EQ(raw, PlanesExample());
}

// The frame, and so its length at 8, may differ from one libzstd to the next.
TEST(Golden, PlanesChunkIsEncodedSo) {
  const std::string page = BytesOfHexLines(Block("hex planes-chunk"));
  std::vector<std::byte> stored;
  ASSERT_TRUE(FindCodec(CodecId::kPlanes)->encode(PlanesExample(), DType::kBF16, &stored));
  EXPECT_EQ(AsText(stored).substr(0, 8), page.substr(0, 8));
  EXPECT_EQ(AsText(stored).substr(11, 1 + 64), page.substr(11, 1 + 64));
}

// The frame may differ from one libzstd to the next: so the page's own is decoded.
TEST(Golden, DeltaChunkDecodes) {
  std::vector<std::byte> raw(64);
  const Hash128 base = HashOf(raw);
  const std::string stored = BytesOfHexLines(Block("hex delta-chunk"));
  const absl::StatusOr<Delta> delta = ParseDelta(AsBytes(stored));
  ASSERT_OK(delta);
  EXPECT_EQ(delta->base, base) << base.ToHex();
  EXPECT_EQ(delta->codec->id, CodecId::kZstd);
  ASSERT_OK(delta->codec->decode(delta->difference, DType::kF32, raw));
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(LoadLittle<uint32_t>(raw.data() + 4 * i), i == 3 ? 0x3f800000u : 0u);
  }
}

TEST(Golden, Checksums) {
  EXPECT_THAT(Page(), HasSubstr(absl::StrFormat("`%08x`", Crc32c(AsBytes("123456789")))));
  EXPECT_THAT(Page(), HasSubstr("`" + HashOf(AsBytes("abc")).ToHex() + "`"));
  EXPECT_THAT(Page(), HasSubstr("`" + HashOf({}).ToHex() + "`"));
}

TEST(Golden, CatalogKeys) {
  for (const std::string& key : {RunKey("demo"), SaveKey("demo", 5), CheckpointKey("demo", 5)}) {
    EXPECT_THAT(Page(), HasSubstr("`" + key + "`"));
  }
}

// --- Its tables ----------------------------------------------------------------------------------

TEST(FormatPage, ListsEveryDtypeAndCodec) {
  for (int number = 0; number < kDTypeCount; ++number) {
    const DType dtype = DTypeFromNumber(number).value();
    EXPECT_THAT(Page(),
                HasSubstr(StrCat("| ", number, " | `", DTypeName(dtype), "` | ", ElementBytes(dtype), " |")));
  }
  for (const Codec& codec : AllCodecs()) {
    EXPECT_THAT(Page(), HasSubstr(StrCat("| ", static_cast<int>(codec.id), " | `", codec.name, "` |")));
  }
  EXPECT_THAT(Page(), HasSubstr(StrCat("| ", static_cast<int>(CodecId::kDelta), " | `delta` |")));
}

// Each stored message has a section, and in it a row for each of its fields, and no other.
TEST(FormatPage, ListsEveryFieldOfEveryStoredMessage) {
  const google::protobuf::Descriptor* const messages[] = {v1::Layout::descriptor(),
                                                          v1::Shard::descriptor(),
                                                          v1::Part::descriptor(),
                                                          v1::Manifest::descriptor(),
                                                          v1::ServerInfo::descriptor(),
                                                          v1::PartEntry::descriptor(),
                                                          v1::RunRecord::descriptor(),
                                                          v1::Incarnation::descriptor(),
                                                          v1::RetentionPolicy::descriptor(),
                                                          v1::SaveRecord::descriptor(),
                                                          v1::CheckpointRecord::descriptor(),
                                                          v1::SaveContext::descriptor()};
  for (const google::protobuf::Descriptor* message : messages) {
    const std::string heading = StrCat("### ", message->name(), "\n");
    const size_t begin = Page().find(heading);
    ASSERT_NE(begin, std::string::npos) << heading;
    const std::string section = Page().substr(begin, Page().find("\n##", begin + 1) - begin);
    int rows = 0;
    for (const absl::string_view line : absl::StrSplit(section, '\n'))
      rows += line.size() > 2 && line.substr(0, 2) == "| " && line[2] >= '0' && line[2] <= '9';
    EXPECT_EQ(rows, message->field_count()) << heading;
    for (int i = 0; i < message->field_count(); ++i) {
      const google::protobuf::FieldDescriptor& field = *message->field(i);
      std::string type = field.type_name();
      if (field.message_type() != nullptr) type = field.message_type()->name();
      if (field.enum_type() != nullptr) type = field.enum_type()->name();
      EXPECT_THAT(section, HasSubstr(StrCat("| ", field.number(), " | `", field.name(), "` | ",
                                            field.is_repeated() ? "repeated " : "", type, " |")));
    }
  }
}

}  // namespace
}  // namespace esker
