#include "tools/safetensors_index.h"

#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"

namespace esker {
namespace {

using Shards = std::vector<std::vector<size_t>>;

void ExpectIndexRefused(const std::string& json, const std::string& text) {
  const absl::Status status = ParseShardIndex(json, "model.json").status();
  EXPECT_STATUS(status, absl::StatusCode::kInvalidArgument, text);
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("model.json: "));
}

TEST(SafetensorsIndex, ReadsTheWeightMapAndLetsTheRestBe) {
  ASSERT_OK_AND_ASSIGN(
      const WeightMap weight_map,
      ParseShardIndex(R"({"metadata": {"total_size": 7, "a": 1, "b": {"a": 2}, "c": [{"a": 3}]},
                                           "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})",
                      "model.json"));
  EXPECT_EQ(weight_map, (WeightMap{{"a", "1.safetensors"}, {"b", "2.safetensors"}}));
}

TEST(SafetensorsIndex, RoundTrip) {
  const WeightMap weight_map = {{"layer.\"0\"", "model-00001-of-00002.safetensors"},
                                {"läyer.1", "model-00002-of-00002.safetensors"}};
  const std::string json = ShardIndexJson(weight_map, 12'345'678'901);
  ASSERT_OK_AND_ASSIGN(const WeightMap back, ParseShardIndex(json, "model.json"));
  EXPECT_EQ(back, weight_map);
  EXPECT_EQ(nlohmann::json::parse(json)["metadata"]["total_size"], 12'345'678'901);
}

TEST(SafetensorsIndex, RefusesWhatIsNoIndex) {
  ExpectIndexRefused("", "not JSON");
  ExpectIndexRefused(R"({"weight_map": {"a": )", "not JSON");
  ExpectIndexRefused("[]", "\"weight_map\"");
  ExpectIndexRefused("7", "\"weight_map\"");
  ExpectIndexRefused(R"({"metadata": {}})", "\"weight_map\"");
  ExpectIndexRefused(R"({"weight_map": ["a"]})", "\"weight_map\"");
}

TEST(SafetensorsIndex, RefusesATensorThatStandsTwice) {
  ExpectIndexRefused(R"({"weight_map": {"a": "1", "b": "1", "a": "2"}})", "\"a\" stands twice");
  ExpectIndexRefused(R"({"weight_map": {"a": "1"}, "weight_map": {"b": "1"}})",
                     "\"weight_map\" stands twice");
}

TEST(SafetensorsIndex, RefusesFilesThatAreNotBesideIt) {
  for (const std::string file : {R"("../other/model.safetensors")", R"("/etc/passwd")", R"("a/b")", R"("..")",
                                 R"(".")", R"("")", R"("a\u0000b")", "7", "null", R"({"a": "b"})"}) {
    ExpectIndexRefused(R"({"weight_map": {"fine": "1.safetensors", "bad": )" + file + "}}", "tensor \"bad\"");
  }
}

TEST(SafetensorsIndex, RefusesContainersWithoutDescendingIntoThem) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  ExpectIndexRefused(R"({"weight_map": {"bad": )" + deep + "}}", "found array");
}

TEST(SafetensorsIndex, ShardsAreFilledInOrder) {
  EXPECT_EQ(SplitIntoShards({4, 4, 4, 4}, 8), (Shards{{0, 1}, {2, 3}}));
  EXPECT_EQ(SplitIntoShards({4, 4, 4, 4}, 11), (Shards{{0, 1}, {2, 3}}));
  EXPECT_EQ(SplitIntoShards({1, 2, 3, 4}, 6), (Shards{{0, 1, 2}, {3}}));
  EXPECT_EQ(SplitIntoShards({4, 4}, ~uint64_t{0}), (Shards{{0, 1}}));
}

TEST(SafetensorsIndex, ATensorThatIsTooLargeHasAShardOfItsOwn) {
  EXPECT_EQ(SplitIntoShards({2, 100, 2, 0}, 4), (Shards{{1}, {0, 2, 3}}));
  EXPECT_EQ(SplitIntoShards({100}, 4), (Shards{{0}}));
}

TEST(SafetensorsIndex, NoTensorsAreOneShard) { EXPECT_EQ(SplitIntoShards({}, 4), (Shards{{}})); }

TEST(SafetensorsIndex, NamesFilesAsHuggingFaceDoes) {
  EXPECT_EQ(ShardFileName(0, 1), "model.safetensors");
  EXPECT_EQ(ShardFileName(0, 2), "model-00001-of-00002.safetensors");
  EXPECT_EQ(ShardFileName(122'999, 123'000), "model-123000-of-123000.safetensors");
}

}  // namespace
}  // namespace esker
