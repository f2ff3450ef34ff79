// Runs every target over its corpus, and over small changes of it, in every build: no Clang needed. What a
// fuzzer found once stays in the corpus and is found again here.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "tests/fuzz/targets.h"
#include "tests/testing/seed.h"

namespace esker::fuzz {
namespace {

constexpr int kChangesOfEach = 200;

class Corpus : public ::testing::TestWithParam<Target> {
 protected:
  std::vector<std::string> Inputs() const {
    std::vector<std::string> inputs;
    const auto folder = std::filesystem::path(ESKER_SOURCE_DIR) / "tests/fuzz/corpus" / GetParam().name;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      std::ifstream file(entry.path(), std::ios::binary);
      inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return inputs;
  }
};

TEST_P(Corpus, NothingBreaks) {
  const std::vector<std::string> inputs = Inputs();
  ASSERT_FALSE(inputs.empty());
  for (const std::string& input : inputs) GetParam().run(AsBytes(input));
}

TEST_P(Corpus, NothingBreaksIfItIsChanged) {
  std::mt19937_64 random(esker::testing::TestSeed());
  for (const std::string& intact : Inputs()) {
    for (int round = 0; round < kChangesOfEach; ++round) {
      std::string input =
          intact.substr(0, random() % 4 == 0 ? random() % (intact.size() + 1) : intact.size());
      for (uint64_t flips = random() % 4; flips > 0 && !input.empty(); --flips) {
        input[random() % input.size()] ^= static_cast<char>(1 << random() % 8);
      }
      GetParam().run(AsBytes(input));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Corpus, ::testing::ValuesIn(AllTargets().begin(), AllTargets().end()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace esker::fuzz
