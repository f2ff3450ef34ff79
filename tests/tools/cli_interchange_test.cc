// Models that are spread over several safetensors files, in and out; and what `esker` says where it hands
// over to Python. What Python then does is tested in tests/python/test_interchange*.py.
#include <filesystem>

#include "tests/testing/status_matchers.h"
#include "tests/tools/cli_harness.h"
#include "tools/safetensors_index.h"

namespace esker::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";

class CliInterchangeTest : public ::testing::Test {
 protected:
  CliInterchangeTest() { std::filesystem::create_directory(model_); }

  Outcome Esker(const std::vector<std::string>& arguments, const Process::Options& options = {}) {
    return RunEsker(server_.address(), arguments, options);
  }
  void Ok(const std::vector<std::string>& arguments) {
    const Outcome outcome = Esker(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  }
  void Fails(const std::vector<std::string>& arguments, int exit_code, const std::string& text) {
    const Outcome outcome = Esker(arguments);
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.out << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(text));
  }
  // `run@7` of all of these tensors.
  void SaveModel(const FileTensors& tensors, const FileMetadata& metadata = {}) {
    const std::string file = directory_ / "whole.safetensors";
    WriteSafetensors(file, tensors, metadata);
    Ok({"save", "run@7", file});
  }
  // A model of two files in model_, and its index.
  void WriteShards() {
    WriteSafetensors(model_ + "/" + kFirst, {{"a", first_}}, {{"format", "pt"}});
    WriteSafetensors(model_ + "/" + kSecond, {{"b", second_}}, {{"format", "pt"}});
    WriteIndex({{"a", kFirst}, {"b", kSecond}});
  }
  void WriteIndex(const WeightMap& weight_map) { WriteFile(index_, ShardIndexJson(weight_map, 0)); }

  TestServer server_;
  TempDir directory_;
  const std::string model_ = directory_ / "model";
  const std::string index_ = model_ + "/" + kShardIndexFile;
  const FileTensor first_ = RandomTensor(ElementType::kF32, {20, 5}, 1);
  const FileTensor second_ = RandomTensor(ElementType::kBF16, {64}, 2);
};

TEST_F(CliInterchangeTest, AShardedModelIsSavedByItsDirectoryOrItsIndex) {
  WriteShards();
  WriteFile(model_ + "/config.json", "{}");
  uint64_t step = 0;
  for (const std::string& path : {model_, index_}) {
    const std::string name = "run@" + std::to_string(++step);
    Ok({"save", name, path, "--ranks", "2"});
    const std::string out = directory_ / ("out-" + std::to_string(step) + ".safetensors");
    Ok({"restore", name, "--to", out});
    EXPECT_EQ(ReadSafetensors(out), (FileTensors{{"a", first_}, {"b", second_}}));
  }
}

TEST_F(CliInterchangeTest, ADirectoryWithOneFileNeedsNoIndex) {
  WriteSafetensors(model_ + "/model.safetensors", {{"a", first_}});
  Ok({"save", "run@1", model_});
}

TEST_F(CliInterchangeTest, AnIndexThatLiesIsAnError) {
  WriteShards();
  const auto refused = [this](int exit_code, const std::string& text) {
    Fails({"save", "run@1", model_}, exit_code, text);
  };
  WriteIndex({{"a", kFirst}, {"b", kSecond}, {"c", kSecond}});
  refused(2, "tensor \"c\" is not in the file model-00002-of-00002.safetensors");
  WriteIndex({{"a", kSecond}, {"b", kFirst}});
  refused(2, "as weight_map says");
  WriteIndex({{"a", kFirst}});
  Ok({"save", "run@2", model_});  // a file that it does not name is none of its model
  WriteSafetensors(model_ + "/" + kFirst, {{"a", first_}, {"extra", second_}}, {{"format", "pt"}});
  WriteIndex({{"a", kFirst}, {"b", kSecond}});
  refused(2, "tensor \"extra\" is not in the weight_map");
  WriteIndex({{"a", kFirst}, {"b", "gone.safetensors"}});
  refused(3, "gone.safetensors");
  WriteFile(index_, R"({"weight_map": {"a": "../whole.safetensors"}})");
  refused(2, "expected the name of a file beside the index");
}

TEST_F(CliInterchangeTest, ADirectoryThatIsNoModelIsAnError) {
  Fails({"save", "run@1", model_}, 2, "neither safetensors files nor");
  WriteSafetensors(model_ + "/x.safetensors", {{"a", first_}});
  WriteSafetensors(model_ + "/y.safetensors", {{"b", second_}});
  Fails({"save", "run@1", model_}, 2, "x.safetensors, y.safetensors");
  Fails({"save", "run@1", directory_ / "none"}, 3, "none");
}

TEST_F(CliInterchangeTest, ARestoreInShardsIsWhatAnIndexedSaveReads) {
  const FileTensors tensors = {
      {"a", first_}, {"b", second_}, {"c", RandomTensor(ElementType::kF32, {100}, 3)}};
  SaveModel(tensors);
  const std::string out = directory_ / "sharded";
  Ok({"restore", "run@7", "--to", out, "--max-shard-size", "600B"});
  EXPECT_THAT(ListDirectory(out), ElementsAre(kFirst, kSecond, kShardIndexFile));
  FileMetadata metadata;
  EXPECT_EQ(ReadSafetensors(out + "/" + kFirst, &metadata), (FileTensors{{"a", first_}, {"b", second_}}));
  EXPECT_EQ(metadata, (FileMetadata{{"format", "pt"}}));
  const auto index = nlohmann::json::parse(ReadFile(out + "/" + kShardIndexFile));
  EXPECT_EQ(index["metadata"]["total_size"], 400 + 128 + 400);
  EXPECT_EQ(index["weight_map"], (nlohmann::json{{"a", kFirst}, {"b", kFirst}, {"c", kSecond}}));
  Ok({"save", "run@8", out});
  Ok({"restore", "run@8", "--to", directory_ / "again.safetensors"});
  EXPECT_EQ(ReadSafetensors(directory_ / "again.safetensors"), tensors);
}

TEST_F(CliInterchangeTest, WhatFitsIntoOneShardHasNoIndex) {
  SaveModel({{"a", first_}}, {{"format", "tf"}});
  const std::string out = directory_ / "one";
  Ok({"restore", "run@7", "--to", out, "--max-shard-size", "5GB"});
  EXPECT_THAT(ListDirectory(out), ElementsAre("model.safetensors"));
  FileMetadata metadata;
  ReadSafetensors(out + "/model.safetensors", &metadata);
  EXPECT_EQ(metadata, (FileMetadata{{"format", "tf"}}));
}

TEST_F(CliInterchangeTest, OptionsThatContradictAreErrors) {
  SaveModel({{"a", first_}});
  const std::string out = directory_ / "out";
  Fails({"restore", "run@7", "--to", out, "--max-shard-size", "0"}, 2, "--max-shard-size 0");
  Fails({"restore", "run@7", "--to", out, "--max-shard-size", "many"}, 2, "not a number of bytes");
  Fails({"restore", "run@7", "--to", out, "--max-shard-size", "5GB", "--per-rank"}, 2, "choose one");
  Fails({"restore", "run@7", "--to", out + ".safetensors", "--max-shard-size", "5GB"}, 2, "directory");
  Fails({"restore", "run@7", "--to", out, "--from-rank", "0"}, 2, "--from-rank");
  Fails({"restore", "run@7", "--to", out, "--format", "dcp", "--only", "a"}, 2, "for safetensors");
  Fails({"restore", "run@7", "--to", out, "--format", "zip"}, 2, "--format");
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST_F(CliInterchangeTest, WhatOnlyTorchReadsNeedsPython) {
  const std::string file = directory_ / "model.pt";
  WriteFile(file, "PK\x03\x04");
  Process::Options no_python;
  no_python.environment["ESKER_PYTHON"] = "/bin/false";
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"save", "run@1", file},
           {"restore", "run@1", "--to", directory_ / "out.pt"},
           {"restore", "run@1", "--to", directory_ / "out", "--format", "dcp"}}) {
    const Outcome outcome = Esker(arguments, no_python);
    EXPECT_EQ(outcome.exit_code, 1);
    EXPECT_THAT(outcome.err, HasSubstr("needs PyTorch, and /bin/false has not both Python packages"));
  }
  Fails({"save", "run@1", file, "--ranks", "2"}, 2, "--ranks");
  Fails({"save", "run@1", file, file}, 2, "a checkpoint by itself");
}

}  // namespace
}  // namespace esker::testing
