#include "tools/split.h"

#include <algorithm>

namespace esker {
namespace {

bool CanBeCut(const SourceTensor& tensor, uint32_t ranks) {
  return ranks > 1 && !tensor.box.shape.empty() && tensor.box.shape[0] >= ranks && tensor.box.bytes() > 0;
}

SourceTensor Piece(const SourceTensor& tensor, uint64_t first_row, uint64_t rows) {
  const uint64_t row_bytes = tensor.box.bytes() / tensor.box.shape[0];
  SourceTensor piece = tensor;
  piece.box.offset[0] = first_row;
  piece.box.extent[0] = rows;
  piece.data = static_cast<const char*>(tensor.data) + first_row * row_bytes;
  return piece;
}

}  // namespace

std::vector<std::vector<SourceTensor>> SplitOverRanks(const std::vector<SourceTensor>& tensors,
                                                      uint32_t ranks) {
  std::vector<std::vector<SourceTensor>> split(ranks);
  std::vector<uint64_t> load(ranks);
  std::vector<const SourceTensor*> whole;
  for (const SourceTensor& tensor : tensors) {
    if (!CanBeCut(tensor, ranks)) {
      whole.push_back(&tensor);
      continue;
    }
    const uint64_t rows = tensor.box.shape[0];
    uint64_t first_row = 0;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const uint64_t count = rows / ranks + (rank < rows % ranks ? 1 : 0);
      split[rank].push_back(Piece(tensor, first_row, count));
      load[rank] += split[rank].back().box.bytes();
      first_row += count;
    }
  }
  std::stable_sort(whole.begin(), whole.end(), [](const SourceTensor* a, const SourceTensor* b) {
    return a->box.bytes() > b->box.bytes();
  });
  for (const SourceTensor* tensor : whole) {
    const auto lightest = std::min_element(load.begin(), load.end());
    *lightest += tensor->box.bytes();
    split[static_cast<size_t>(lightest - load.begin())].push_back(*tensor);
  }
  return split;
}

}  // namespace esker
