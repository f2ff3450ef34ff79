// The text, and the order in which training sees it. Every rank draws the same batches.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "exchange.h"

namespace esker::example {

// kBatch windows of the text: 16 characters, and the one that follows.
struct Batch {
  std::array<std::array<uint8_t, kContext>, kBatch> context;
  std::array<uint8_t, kBatch> next;
};

// Not thread-safe. Its state is two byte strings, which go into checkpoints: where it is, and the random
// generator.
class DataLoader {
 public:
  // Reads the file: at least a few hundred bytes; what is not ASCII becomes '?'.
  static absl::StatusOr<DataLoader> Open(const std::string& path, uint64_t seed);

  // Each epoch visits every window once, shuffled. One character of a context in fifty is replaced by a
  // random one, so that the model can't learn a small text by heart so fast.
  Batch Next();

  // The position: epoch, windows done in it, and the text's hash.
  std::string Position() const;
  // The generator's state, as std::mt19937_64 prints it.
  std::string RandomState() const;
  // Continues where another loader stood. kFailedPrecondition if that one read another text.
  absl::Status Resume(std::string_view position, std::string_view random_state);

 private:
  DataLoader(std::string text, uint64_t seed);
  void Shuffle();

  std::string text_;
  uint64_t text_hash_ = 0;
  uint64_t seed_ = 0;
  uint64_t epoch_ = 0;
  uint64_t cursor_ = 0;
  std::vector<uint32_t> order_;  // of the windows in this epoch
  std::mt19937_64 random_;
};

}  // namespace esker::example
