#include "format/dump.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "format/chunk_record.h"
#include "format/envelope.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/checkpoint.pb.h"
#include "format/segment_header.h"
#include "tests/format/tamper.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::WithField;
using testing::WithFieldAndCrc;

MutableBytes Writable(std::string* text) {
  return {reinterpret_cast<std::byte*>(text->data()), text->size()};
}

nlohmann::ordered_json Dump(const std::string& bytes) {
  const absl::StatusOr<std::string> text = DumpBytes(AsBytes(bytes));
  EXPECT_OK(text);
  return nlohmann::ordered_json::parse(text.ok() ? *text : "{}", nullptr, false);
}

std::string Record(const std::string& raw, const RecordPlace& place, CodecId codec = CodecId::kRaw) {
  std::vector<std::byte> encoded;
  std::string stored = raw;
  if (codec != CodecId::kRaw) {
    EXPECT_TRUE(FindCodec(codec)->encode(AsBytes(raw), DType::kU8, &encoded));
    stored = std::string(AsText(encoded));
  }
  ChunkInfo info;
  info.hash = HashOf(AsBytes(raw));
  info.codec = codec;
  info.dtype = DType::kU8;
  info.raw_bytes = raw.size();
  info.stored_bytes = stored.size();
  info.stored_crc32c = Crc32c(AsBytes(stored));
  std::string record(RecordBytes(stored.size()), '\0');
  EncodeChunkHeader(info, place, Writable(&record));
  record.replace(PayloadOffset(stored.size()), stored.size(), stored);
  return record;
}

std::string SegmentBlock(uint64_t generation = 3) {
  SegmentHeader header;
  header.segment_id = 7;
  header.generation = generation;
  header.segment_bytes = 1 << 20;
  std::string block(kFirstRecordOffset, '\0');
  EncodeSegmentHeader(header, Writable(&block));
  return block;
}

TEST(DumpBytes, RefusesWhatIsNotEskers) {
  for (const std::string& bytes :
       {std::string(), std::string("ES"), std::string("ESKX and more"), std::string(5000, '\0')}) {
    EXPECT_STATUS(DumpBytes(AsBytes(bytes)), absl::StatusCode::kInvalidArgument, "expected a magic number");
  }
}

TEST(DumpBytes, DescribesARecordWithItsPayload) {
  const auto json = Dump(Record(std::string(1000, 'z'), {7, 3, 4096}, CodecId::kZstd));
  EXPECT_EQ(json["structure"], "chunk record");
  EXPECT_EQ(json["codec"], "zstd");
  EXPECT_EQ(json["raw_bytes"], 1000);
  EXPECT_EQ(json["offset"], 4096);
  EXPECT_EQ(json["intact"], true);
  EXPECT_EQ(json["payload"]["stored_bytes"], "ok");
  EXPECT_EQ(json["payload"]["raw_hash"], "ok");
}

TEST(DumpBytes, ShowsADamagedPayload) {
  std::string record = Record("some raw bytes", {7, 3, 4096});
  record[130] ^= 1;
  const auto json = Dump(record);
  EXPECT_EQ(json["intact"], true);
  EXPECT_THAT(json["payload"]["stored_bytes"].get<std::string>(), StartsWith("expected CRC-32C"));
  EXPECT_THAT(json["payload"]["raw_hash"].get<std::string>(), StartsWith("expected"));
  EXPECT_THAT(Dump(record.substr(0, 100))["payload"].get<std::string>(),
              HasSubstr("not among the given bytes"));
}

TEST(DumpBytes, ShowsEachDamagedFieldWithWhatWasExpected) {
  const std::string record = Record("some raw bytes", {7, 3, 4096});
  auto json = Dump(WithField(record, 76, uint32_t{0xABC}));
  EXPECT_EQ(json["header_crc32c"]["found"], "00000abc");
  EXPECT_EQ(json["intact"], false);
  json = Dump(WithFieldAndCrc(record, 8, uint32_t{99}, 76));
  EXPECT_EQ(json["payload_offset"]["found"], 99);
  EXPECT_EQ(json["payload_offset"]["expected"], 128);
  json = Dump(WithFieldAndCrc(record, 4, uint16_t{9}, 76));
  EXPECT_EQ(json["format_version"]["found"], 9);
  json = Dump(WithFieldAndCrc(record, 16, ~uint64_t{0}, 76));
  EXPECT_EQ(json["raw_bytes"]["found"], ~uint64_t{0});
  json = Dump(WithFieldAndCrc(record, 6, uint8_t{77}, 76));
  EXPECT_EQ(json["codec"]["found"], 77);
  json = Dump(record.substr(0, 79));
  EXPECT_EQ(json["bytes"]["found"], 79);
  EXPECT_EQ(json["intact"], false);
  json = Dump(WithFieldAndCrc(SegmentBlock(), 40, uint64_t{5000}, 60));
  EXPECT_EQ(json["segment_bytes"]["found"], 5000);
}

TEST(DumpBytes, ShowsADamagedEnvelope) {
  v1::RunRecord run;
  run.set_run("llama");
  const std::string envelope = EncodeEnvelope(EnvelopeKind::kRun, run);
  EXPECT_EQ(Dump(envelope)["intact"], true);
  auto json = Dump(envelope.substr(0, envelope.size() - 1));
  EXPECT_EQ(json["body_bytes"]["found"], envelope.size() - 24);
  EXPECT_EQ(json["body_bytes"]["expected"], envelope.size() - 25);
  EXPECT_EQ(json["body"]["expected"], "esker.v1.RunRecord");
  json = Dump(WithField(envelope, 16, uint32_t{1}));
  EXPECT_EQ(json["body_crc32c"]["found"], "00000001");
  json = Dump(WithFieldAndCrc(envelope, 8, ~uint64_t{0}, 20));
  EXPECT_EQ(json["body_bytes"]["found"], ~uint64_t{0});
}

TEST(DumpBytes, ShowsFieldsOfANewerWriter) {
  v1::CheckpointRecord newer;
  newer.set_pin_note("x");
  const std::string body = SerializeDeterministic(newer) + std::string("\xc0\x3e\x05", 3);  // tag 1000: 5
  const auto json = Dump(WrapEnvelope(EnvelopeKind::kCheckpoint, body));
  EXPECT_EQ(json["body"]["unknown_tags"], nlohmann::ordered_json::array({1000}));
}

class DumpSegmentFileTest : public ::testing::Test {
 protected:
  std::vector<std::string> Lines(const std::string& bytes, bool deep) {
    const std::string path = directory_ / "segment";
    std::ofstream(path, std::ios::binary) << bytes;
    std::vector<std::string> lines;
    bool in_header = true;
    EXPECT_OK(DumpSegmentFile(path, deep, [&](const std::string& line) {
      if (!in_header) lines.push_back(line);
      if (line == "}") in_header = false;
    }));
    return lines;
  }

  testing::TempDir directory_;
};

TEST_F(DumpSegmentFileTest, WalksTheRecords) {
  const std::string large(100000, 'a');
  const std::string bytes = SegmentBlock() + Record("first", {7, 3, 4096}) + Record(large, {7, 3, 8192}) +
                            Record(large, {7, 3, 8192 + 106496}, CodecId::kZstd) + std::string(8192, '\0');
  EXPECT_THAT(
      Lines(bytes, true),
      ElementsAre(
          StartsWith(
              "offset=4096 hash=" + HashOf(AsBytes("first")).ToHex() +
              " dtype=U8 codec=raw raw_bytes=5 stored_bytes=5 generation=3 header=ok payload=ok raw_hash=ok"),
          HasSubstr("offset=8192 "), HasSubstr("codec=zstd raw_bytes=100000"),
          "offset=118784 no record in the 8192 bytes up to 126976",
          "records=3 damaged=0 earlier_generations=0"));
}

TEST_F(DumpSegmentFileTest, PrintsTheHeaderFirst) {
  const std::string path = directory_ / "segment";
  std::ofstream(path, std::ios::binary) << SegmentBlock();
  std::string text;
  EXPECT_OK(DumpSegmentFile(path, false, [&](const std::string& line) { text += line + "\n"; }));
  EXPECT_THAT(text, StartsWith("{\n  \"structure\": \"segment header\","));
  EXPECT_THAT(text, HasSubstr("\"segment_id\": 7,\n"));
}

TEST_F(DumpSegmentFileTest, GoesOnBehindADamagedRecord) {
  std::string bytes = SegmentBlock() + Record("first", {7, 3, 4096}) + Record("second", {7, 3, 8192}) +
                      Record("third", {7, 3, 12288});
  bytes[4096 + 40] ^= 4;   // the header of the first
  bytes[8192 + 128] ^= 4;  // the payload of the second
  const std::vector<std::string> lines = Lines(bytes, false);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_THAT(lines[0], StartsWith("offset=4096 header=damaged {"));
  EXPECT_EQ(lines[1], "offset=4096 no record in the 4096 bytes up to 8192");
  EXPECT_THAT(lines[2], HasSubstr("offset=8192 "));
  EXPECT_THAT(lines[2], HasSubstr("payload=expected CRC-32C"));
  EXPECT_THAT(lines[3], HasSubstr("payload=ok"));
  EXPECT_EQ(lines[4], "records=2 damaged=2 earlier_generations=0");
}

TEST_F(DumpSegmentFileTest, OnlyTheDeepDumpSeesAWrongHash) {
  std::string record = Record("first", {7, 3, 4096});
  record = WithFieldAndCrc(record, 32, uint64_t{1}, 76);  // another chunk's name on it
  EXPECT_THAT(Lines(SegmentBlock() + record, false).back(), HasSubstr("damaged=0"));
  const std::vector<std::string> deep = Lines(SegmentBlock() + record, true);
  EXPECT_THAT(deep[0], HasSubstr("raw_hash=expected "));
  EXPECT_THAT(deep.back(), HasSubstr("damaged=1"));
}

TEST_F(DumpSegmentFileTest, TellsEarlierGenerationsAndMisplacedRecordsApart) {
  const std::string bytes = SegmentBlock(4) + Record("new", {7, 4, 4096}) + Record("old", {7, 3, 8192}) +
                            Record("lost", {9, 4, 12288}) + Record("new", {7, 4, 16384});
  const std::vector<std::string> lines = Lines(bytes, false);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[1], "offset=8192 no record in the 4096 bytes up to 12288");
  EXPECT_EQ(lines[2], "offset=12288 misplaced: the record of segment 9, generation 4, offset 12288");
  EXPECT_THAT(lines[4], StartsWith("offset=16384 "));
  EXPECT_EQ(lines[5], "records=2 damaged=1 earlier_generations=1");
}

TEST_F(DumpSegmentFileTest, WalksWithoutAHeader) {
  std::string bytes = SegmentBlock() + Record("first", {7, 3, 4096});
  bytes[0] = 'X';
  EXPECT_THAT(Lines(bytes, true).back(), "records=1 damaged=0 earlier_generations=0");
}

TEST_F(DumpSegmentFileTest, SurvivesEveryTruncation) {
  const std::string bytes = SegmentBlock() + Record(std::string(70000, 'a'), {7, 3, 4096});
  for (const size_t size : {0u, 10u, 63u, 64u, 4095u, 4096u, 4097u, 4175u, 4176u, 8192u, 78191u}) {
    EXPECT_THAT(Lines(bytes.substr(0, size), true).back(), StartsWith("records=")) << size;
  }
  EXPECT_THAT(Lines(bytes.substr(0, 78191), true)[0], HasSubstr("payload=cut short by the file's end"));
}

TEST_F(DumpSegmentFileTest, SaysWhichFileCannotBeRead) {
  const auto ignore = [](const std::string&) {};
  EXPECT_STATUS(DumpSegmentFile(directory_ / "nothing", false, ignore), absl::StatusCode::kNotFound,
                "nothing");
  EXPECT_STATUS(DumpSegmentFile(directory_.path(), false, ignore), absl::StatusCode::kUnavailable,
                directory_.path());
}

}  // namespace
}  // namespace esker
