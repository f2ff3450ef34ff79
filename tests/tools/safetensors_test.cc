#include "tools/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>
#include <random>

#include "format/base/bytes.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using testing::TempDir;

// A file of this header and so many bytes of data.
std::string FileOf(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(file.data()), header.size());
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(AsBytes(file), "model.safetensors");
}

void ExpectRefused(const std::string& file, absl::StatusCode code, const std::string& text) {
  const absl::Status status = Parse(file).status();
  EXPECT_STATUS(status, code, text);
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("model.safetensors: "));
}

// A header of one F32 tensor of two elements with this name, as it stands in JSON.
std::string HeaderNamed(const std::string& json_name) {
  return R"({")" + json_name + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kLost = absl::StatusCode::kDataLoss;

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const std::string header =
      R"({"__metadata__":{"z":"1","a":"2"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
      R"("a":{"shape":[],"data_offsets":[0,4],"dtype":"I32"},"e":{"dtype":"F64","shape":[0,7],"data_offsets":[4,4]}}   )";
  ASSERT_OK_AND_ASSIGN(const SafetensorsHeader parsed, Parse(FileOf(header, 12)));
  ASSERT_EQ(parsed.entries.size(), 3u);
  EXPECT_EQ(parsed.entries[0].tensor.name, "a");
  EXPECT_TRUE(parsed.entries[0].tensor.shape.empty());
  EXPECT_EQ(parsed.entries[1].tensor.name, "e");
  EXPECT_EQ(parsed.entries[1].tensor.bytes(), 0u);
  EXPECT_EQ(parsed.entries[2].tensor.name, "b");
  EXPECT_EQ(parsed.entries[2].tensor.type, ElementType::kF32);
  EXPECT_EQ(parsed.entries[2].begin, 4u);
  EXPECT_EQ(parsed.data_offset, 8 + header.size());
  EXPECT_EQ(parsed.metadata, (SafetensorsMetadata{{"z", "1"}, {"a", "2"}}));
}

TEST(Safetensors, AFileWithoutTensorsIsValid) { EXPECT_OK(Parse(FileOf("{}", 0))); }

TEST(Safetensors, RefusesWhatIsNotSafetensors) {
  ExpectRefused("", kLost, "has 0 bytes");
  ExpectRefused("PK\x03\x04", kLost, "has 4 bytes");
  ExpectRefused(std::string("GGUF") + std::string(100, '\1'), kInvalid, "not a safetensors file");
  ExpectRefused(FileOf("[1,2]", 0), kInvalid, "does not begin with '{'");
  ExpectRefused(FileOf("", 0), kInvalid, "does not begin with '{'");
  ExpectRefused(FileOf("{nonsense}", 0), kInvalid, "not valid JSON");
  ExpectRefused(FileOf("{}{}", 0), kInvalid, "not valid JSON");
}

TEST(Safetensors, RefusesAHeaderLengthOf2To63) {
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, kMaxSafetensorsHeaderBytes + 1}) {
    std::string file = FileOf("{}", 100);
    StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(file.data()), length);
    ExpectRefused(file, kInvalid, "its header would be " + std::to_string(length) + " bytes long");
  }
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file = FileOf(R"({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 16);
  ASSERT_OK(Parse(file));
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_STATUS(Parse(file.substr(0, length)), kLost, "model.safetensors: ");
  }
}

TEST(Safetensors, RefusesOverlaps) {
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                       6),
                kInvalid, "tensor \"b\" begins at 2, but the tensors before it end at 4: they overlap");
}

TEST(Safetensors, RefusesGapsAndBytesThatBelongToNoTensor) {
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
                       9),
                kInvalid, "tensor \"b\" begins at 5, but the tensors before it end at 4: there is a gap");
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5), kInvalid,
                "there is a gap");
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 7), kInvalid,
                "3 bytes behind the last tensor belong to none");
}

TEST(Safetensors, RefusesOffsetsOutOfRange) {
  ExpectRefused(FileOf(R"({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 12), kLost,
                "tensor \"w\": data_offsets [0, 16] end behind the file's 12 bytes of data");
  ExpectRefused(
      FileOf(R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}})",
             4),
      kLost, "end behind the file's 4 bytes");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4), kInvalid,
                "end before they begin");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}})", 4), kInvalid,
                "negative number");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", 4), kInvalid,
                "has 1 numbers: expected begin and end");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,2,4]}})", 4), kInvalid,
                "has 3 numbers");
}

TEST(Safetensors, RefusesShapesThatDoNotFitTheirBytes) {
  ExpectRefused(FileOf(R"({"w":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})", 16), kInvalid,
                "are 16 bytes, but its shape and dtype need 12");
  // 2^32 * 2^32 elements would be 0 in 64 bits.
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
                kInvalid, "tensor \"w\"");
  ExpectRefused(FileOf(R"({"w":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0),
                kInvalid, "tensor \"w\"");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]}})", 0),
                kInvalid, "expected an array of whole numbers");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1), kInvalid,
                "the number 1.5");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1), kInvalid,
                "negative number");
  std::string shape = "1";
  for (int i = 0; i < 64; ++i) shape += ",1";
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","data_offsets":[0,1],"shape":[)" + shape + "]}}", 1), kInvalid,
                "tensor \"w\"");
}

TEST(Safetensors, RefusesUnknownDtypes) {
  for (const char* dtype : {"F4", "BYTES", "f32", ""}) {
    ExpectRefused(
        FileOf(std::string(R"({"w":{"dtype":")") + dtype + R"(","shape":[1],"data_offsets":[0,1]}})", 1),
        kInvalid, "is not one that Esker knows");
  }
}

TEST(Safetensors, RefusesFieldsThatAreTwiceMissingUnknownOrOfAnotherType) {
  const std::string field = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])";
  ExpectRefused(FileOf("{\"w\":{" + field + "},\"w\":{" + field + "}}", 2), kInvalid,
                "tensor \"w\" stands twice");
  ExpectRefused(FileOf("{\"w\":{" + field + ",\"dtype\":\"U8\"}}", 1), kInvalid, "\"dtype\" stands twice");
  ExpectRefused(FileOf("{\"w\":{" + field + ",\"shape\":[1]}}", 1), kInvalid, "\"shape\" stands twice");
  ExpectRefused(FileOf("{\"w\":{" + field + ",\"strides\":[1]}}", 1), kInvalid,
                "is not a field of safetensors");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[1]}})", 1), kInvalid,
                "tensor \"w\" has no data_offsets");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1), kInvalid, "has no shape");
  ExpectRefused(FileOf(R"({"w":{"shape":[1],"data_offsets":[0,1]}})", 1), kInvalid, "has no dtype");
  ExpectRefused(FileOf(R"({"w":{}})", 0), kInvalid, "has no dtype");
  ExpectRefused(FileOf(R"({"w":3})", 0), kInvalid, "expected an object");
  ExpectRefused(FileOf(R"({"w":null})", 0), kInvalid, "expected an object");
  ExpectRefused(FileOf(R"({"w":"x"})", 0), kInvalid, "expected an object");
  ExpectRefused(FileOf(R"({"w":[]})", 0), kInvalid, "expected an object");
  ExpectRefused(FileOf(R"({"w":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1), kInvalid,
                "expected a string");
  ExpectRefused(FileOf(R"({"w":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})", 1), kInvalid,
                "is an array");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1), kInvalid,
                "expected an array");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1), kInvalid,
                "is an array");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":{},"data_offsets":[0,1]}})", 1), kInvalid,
                "is an object");
  ExpectRefused(FileOf(R"({"w":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1), kInvalid,
                "is a string");
}

TEST(Safetensors, RefusesMetadataThatIsNotTexts) {
  ExpectRefused(FileOf(R"({"__metadata__":"pt"})", 0), kInvalid, "__metadata__");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":1}})", 0), kInvalid, "__metadata__: \"a\" is a number");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":{}}})", 0), kInvalid, "__metadata__: \"a\" is an object");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":"1","a":"2"}})", 0), kInvalid, "\"a\" stands twice");
  ExpectRefused(FileOf(R"({"__metadata__":{},"__metadata__":{}})", 0), kInvalid, "stands twice");
}

TEST(Safetensors, DeepNestingIsRefusedWithoutRecursion) {
  ExpectRefused(FileOf("{\"w\":" + std::string(1'000'000, '['), 0), kInvalid, "is an array");
  ExpectRefused(FileOf("{\"w\":{\"shape\":" + std::string(1'000'000, '['), 0), kInvalid, "is an array");
}

TEST(Safetensors, NamesMayBePathsButNotBinary) {
  for (const char* name : {"a/b", "..", "../../etc/passwd", "/", "größe", "\\u00e9"}) {
    EXPECT_OK(Parse(FileOf(HeaderNamed(name), 8)));
  }
  EXPECT_OK(Parse(FileOf(HeaderNamed(std::string(4096, 'n')), 8)));
  ExpectRefused(FileOf(HeaderNamed(std::string(10'240, 'n')), 8), kInvalid, "4096");
  ExpectRefused(FileOf(HeaderNamed(""), 8), kInvalid, "tensor \"\"");
  ExpectRefused(FileOf(HeaderNamed("a\\u0000b"), 8), kInvalid, "NUL");
  ExpectRefused(FileOf(HeaderNamed("a\xff\xfe"), 8), kInvalid, "not valid JSON");
  ExpectRefused(FileOf(HeaderNamed("a\\ud800"), 8), kInvalid, "not valid JSON");
  ExpectRefused(FileOf(HeaderNamed(std::string("a\0b", 3)), 8), kInvalid, "NUL at its byte");
}

TEST(Safetensors, NothingMayHideBehindANulInTheHeader) {
  ExpectRefused(FileOf(std::string("{}\0garbage", 10), 0), kInvalid, "NUL at its byte 2");
}

TEST(Safetensors, DamagedHeadersNeverCrash) {
  const std::string file =
      FileOf(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
             R"("b":{"dtype":"I64","shape":[1],"data_offsets":[12,20]}})",
             20);
  ASSERT_OK(Parse(file));
  std::mt19937_64 random(testing::TestSeed());
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string damaged = file;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      damaged[random() % (damaged.size() - 20)] = static_cast<char>(random());
    }
    refused += Parse(damaged).ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 15'000);
}

// --- files ------------------------------------------------------------------------------------------------

TEST(SafetensorsFile, GivesTheTensorsBytes) {
  const TempDir directory;
  const std::string path = directory / "m.safetensors";
  std::ofstream(path, std::ios::binary) << FileOf(HeaderNamed("w"), 8);
  ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(path));
  ASSERT_EQ(file->entries().size(), 1u);
  EXPECT_EQ(AsText(file->Bytes(file->entries()[0])), std::string("\0\1\2\3\4\5\6\7", 8));
}

TEST(SafetensorsFile, SaysWhyAFileCanNotBeRead) {
  const TempDir directory;
  EXPECT_STATUS(SafetensorsFile::Open(directory / "none"), absl::StatusCode::kNotFound, "none");
  EXPECT_STATUS(SafetensorsFile::Open(directory.path()), kInvalid, "is not a regular file");
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  EXPECT_STATUS(SafetensorsFile::Open(directory / "pipe"), kInvalid, "is not a regular file");
  std::ofstream(directory / "empty").close();
  EXPECT_STATUS(SafetensorsFile::Open(directory / "empty"), kLost, "has 0 bytes");
}

// --- writing ----------------------------------------------------------------------------------------------

TEST(SafetensorsLayout, OrdersAsTheOfficialLibraryDoes) {
  const std::vector<SafetensorsTensor> tensors = {{"c", ElementType::kBF16, {3}},
                                                  {"b", ElementType::kF32, {1}},
                                                  {"a", ElementType::kU8, {5}},
                                                  {"a2", ElementType::kF32, {2}},
                                                  {"big", ElementType::kI64, {1}}};
  ASSERT_OK_AND_ASSIGN(const SafetensorsLayout layout, LayOutSafetensors(tensors, {{"format", "pt"}}));
  EXPECT_EQ(
      layout.head.substr(8),
      R"({"__metadata__":{"format":"pt"},"big":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
      R"("a2":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"b":{"dtype":"F32","shape":[1],"data_offsets":[16,20]},)"
      R"("c":{"dtype":"BF16","shape":[3],"data_offsets":[20,26]},"a":{"dtype":"U8","shape":[5],"data_offsets":[26,31]}})" +
          std::string(layout.head.size() - layout.head.find_last_of('}') - 1, ' '));
  EXPECT_EQ(layout.head.size() % 8, 0u);
  EXPECT_EQ(layout.file_bytes, layout.head.size() + 31);
  EXPECT_EQ(layout.offsets[4], layout.head.size());
  EXPECT_EQ(layout.offsets[2], layout.head.size() + 26);
}

TEST(SafetensorsLayout, RoundTrip) {
  std::mt19937_64 random(testing::TestSeed());
  for (int round = 0; round < 200; ++round) {
    std::vector<SafetensorsTensor> tensors;
    for (uint64_t i = random() % 20; i > 0; --i) {
      SafetensorsTensor tensor{
          "t\"\\/\n" + std::to_string(i), static_cast<ElementType>(1 + random() % 20), {}};
      for (uint64_t d = random() % 4; d > 0; --d) tensor.shape.push_back(random() % 5);
      tensors.push_back(tensor);
    }
    const SafetensorsMetadata metadata = {{"k\"", "v\n\u00e9"}, {"a", ""}};
    ASSERT_OK_AND_ASSIGN(const SafetensorsLayout layout, LayOutSafetensors(tensors, metadata));
    std::string file = layout.head;
    file.resize(layout.file_bytes);
    ASSERT_OK_AND_ASSIGN(const SafetensorsHeader parsed, Parse(file));
    EXPECT_EQ(parsed.metadata, metadata);
    ASSERT_EQ(parsed.entries.size(), tensors.size());
    for (const SafetensorsEntry& entry : parsed.entries) {
      const auto given = std::find_if(tensors.begin(), tensors.end(), [&](const SafetensorsTensor& t) {
        return t.name == entry.tensor.name;
      });
      ASSERT_NE(given, tensors.end());
      EXPECT_EQ(given->type, entry.tensor.type);
      EXPECT_EQ(given->shape, entry.tensor.shape);
      EXPECT_EQ(layout.offsets[static_cast<size_t>(given - tensors.begin())],
                parsed.data_offset + entry.begin);
    }
  }
}

TEST(SafetensorsLayout, RefusesNamesThatSafetensorsCanNotHold) {
  const SafetensorsTensor tensor{"w", ElementType::kF32, {1}};
  EXPECT_STATUS(LayOutSafetensors({tensor, tensor}, {}), kInvalid, "\"w\" stands twice");
  EXPECT_STATUS(LayOutSafetensors({{"__metadata__", ElementType::kF32, {1}}}, {}), kInvalid,
                "keeps for itself");
}

TEST(SafetensorsMetadata, JsonRoundTrip) {
  const SafetensorsMetadata metadata = {{"b", "1"}, {"a", "\"quoted\"\n"}};
  ASSERT_OK_AND_ASSIGN(const SafetensorsMetadata back, MetadataFromJson(MetadataToJson(metadata)));
  EXPECT_EQ(back, metadata);
  EXPECT_STATUS(MetadataFromJson("not json"), kInvalid, "JSON");
  EXPECT_STATUS(MetadataFromJson(R"(["a"])"), kInvalid, "is an array");
  EXPECT_STATUS(MetadataFromJson(R"({"a":1})"), kInvalid, "\"a\" is a number");
}

}  // namespace
}  // namespace esker
