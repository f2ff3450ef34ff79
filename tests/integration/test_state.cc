#include "tests/integration/test_state.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace esker::testing {
namespace {

uint64_t Mix(uint64_t x) {  // SplitMix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t NameSeed(const std::string& name, uint64_t seed) {
  uint64_t state = Mix(seed);
  for (const char c : name) state = Mix(state ^ static_cast<unsigned char>(c));
  return state;
}

uint64_t Elements(const std::vector<uint64_t>& extent) {
  uint64_t count = 1;
  for (const uint64_t length : extent) count *= length;
  return count;
}

// Calls `visit` with each element's number in the box and in the global tensor, row-major.
template <typename Visit>
void ForEachElement(const TensorBox& box, const Visit& visit) {
  const uint64_t count = Elements(box.extent);
  const uint64_t row = box.shape.empty() ? 1 : box.extent.back();
  std::vector<uint64_t> at = box.offset;  // of the row in the global tensor
  for (uint64_t i = 0; i < count; i += row) {
    uint64_t index = 0;
    for (size_t d = 0; d < box.shape.size(); ++d) index = index * box.shape[d] + at[d];
    for (uint64_t j = 0; j < row; ++j) visit(i + j, index + j);
    for (size_t d = box.shape.size(); d-- > 0;) {
      at[d] += d + 1 == box.shape.size() ? row : 1;
      if (at[d] < box.offset[d] + box.extent[d]) break;
      at[d] = box.offset[d];
    }
  }
}

// About normal, as weights are.
float Weight(uint64_t word) {
  int32_t sum = 0;
  for (int shift = 0; shift < 64; shift += 16) sum += static_cast<int16_t>(word >> shift);
  return static_cast<float>(sum) * 5e-7F;
}

// The bits of a float's (or, the upper half, a bfloat16's) weight after so many steps.
uint32_t TrainedBits(uint64_t word, uint64_t step, bool is_bfloat16) {
  uint32_t bits = std::bit_cast<uint32_t>(Weight(word));
  for (uint64_t s = 1; s <= step; ++s) {
    const uint64_t change = Mix(word + s);
    if (is_bfloat16 && change % 16 == 0) bits ^= 1U << 16;
    if (!is_bfloat16 && change % 8 == 0) bits ^= static_cast<uint32_t>(change >> 8 & 0xFF);
  }
  return is_bfloat16 ? bits >> 16 : bits;
}

std::string Describe(const TensorBox& box) {
  return absl::StrCat(box.name, " ", std::string(ElementTypeName(box.type)), " [",
                      absl::StrJoin(box.shape, ","), "] at [", absl::StrJoin(box.offset, ","), "] of [",
                      absl::StrJoin(box.extent, ","), "]");
}

}  // namespace

std::vector<std::byte> BoxContent(const TensorBox& box, uint64_t seed) {
  const uint64_t element_bytes = ElementSize(box.type);
  const uint64_t name_seed = NameSeed(box.name, seed);
  std::vector<std::byte> content(Elements(box.extent) * element_bytes);
  ForEachElement(box, [=, to = content.data()](uint64_t i, uint64_t index) {
    const uint64_t words[2] = {Mix(name_seed + index), Mix(name_seed ^ ~index)};
    std::memcpy(to + i * element_bytes, words, std::min<uint64_t>(element_bytes, sizeof(words)));
  });
  return content;
}

Content TrainingContent(uint64_t seed, uint64_t step) {
  return [seed, step](const TensorBox& box) {
    const bool is_float = box.type == ElementType::kF32;
    if (!is_float && box.type != ElementType::kBF16) return BoxContent(box, seed + step);
    const uint64_t element_bytes = ElementSize(box.type);
    const uint64_t name_seed = NameSeed(box.name, seed);
    std::vector<std::byte> content(Elements(box.extent) * element_bytes);
    ForEachElement(box, [=, step = step, to = content.data()](uint64_t i, uint64_t index) {
      const uint32_t bits = TrainedBits(Mix(name_seed + index), step, !is_float);
      std::memcpy(to + i * element_bytes, &bits, element_bytes);
    });
    return content;
  };
}

std::string ItemContent(const std::string& name, uint32_t rank, uint64_t bytes, uint64_t seed) {
  std::string content(bytes, '\0');
  std::mt19937_64 random(NameSeed(name, seed + rank));
  for (char& c : content) c = static_cast<char>(random());
  return content;
}

void RankState::AddTensor(const TensorBox& box, uint64_t seed) { AddTensor(box, BoxContent(box, seed)); }

void RankState::AddTensor(const TensorBox& box, std::vector<std::byte> content) {
  memory_.push_back(std::move(content));
  state_.tensors.push_back({box, memory_.back().data()});
}

void RankState::AddItem(const std::string& name, std::string bytes) {
  items_.push_back(std::make_unique<std::string>(std::move(bytes)));
  state_.items.push_back({name, *items_.back()});
}

uint64_t RankState::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const std::vector<std::byte>& memory : memory_) bytes += memory.size();
  return bytes;
}

RestoreTarget::RestoreTarget(std::vector<TensorBox> boxes) : boxes_(std::move(boxes)) {
  for (const TensorBox& box : boxes_) {
    memory_.emplace_back(Elements(box.extent) * ElementSize(box.type), std::byte{0xEE});
  }
}

std::vector<TargetTensor> RestoreTarget::tensors() {
  std::vector<TargetTensor> tensors;
  for (size_t i = 0; i < boxes_.size(); ++i) tensors.push_back({boxes_[i], memory_[i].data()});
  return tensors;
}

std::string RestoreTarget::Difference(uint64_t seed) const {
  return Difference([seed](const TensorBox& box) { return BoxContent(box, seed); });
}

std::string RestoreTarget::Difference(const Content& content) const {
  for (size_t i = 0; i < boxes_.size(); ++i) {
    const std::vector<std::byte> expected = content(boxes_[i]);
    if (memory_[i].size() == expected.size() &&
        (expected.empty() || std::memcmp(memory_[i].data(), expected.data(), expected.size()) == 0)) {
      continue;
    }
    const auto at =
        std::mismatch(memory_[i].begin(), memory_[i].end(), expected.begin(), expected.end()).first;
    return absl::StrCat(Describe(boxes_[i]), ": differs from byte ", at - memory_[i].begin(), " on");
  }
  return "";
}

std::vector<TensorBox> RowShards(const std::vector<GlobalTensor>& tensors, uint32_t rank, uint32_t ranks) {
  std::vector<TensorBox> boxes;
  for (const GlobalTensor& tensor : tensors) {
    TensorBox box{tensor.name, tensor.type, tensor.shape, std::vector<uint64_t>(tensor.shape.size()),
                  tensor.shape};
    if (tensor.shape.empty()) {
      if (rank == 0) boxes.push_back(box);
      continue;
    }
    const uint64_t begin = tensor.shape[0] * rank / ranks;
    box.offset[0] = begin;
    box.extent[0] = tensor.shape[0] * (rank + 1) / ranks - begin;
    if (box.extent[0] > 0) boxes.push_back(box);
  }
  return boxes;
}

std::vector<TensorBox> RandomGrid(const GlobalTensor& tensor, std::mt19937_64& random) {
  std::vector<TensorBox> boxes = {{tensor.name, tensor.type, tensor.shape, {}, {}}};
  for (const uint64_t length : tensor.shape) {
    std::vector<uint64_t> bounds = {0, length};
    for (uint64_t cuts = random() % 3; cuts > 0 && length > 1; --cuts)
      bounds.push_back(1 + random() % (length - 1));
    std::sort(bounds.begin(), bounds.end());
    bounds.erase(std::unique(bounds.begin() + 1, bounds.end()), bounds.end());
    std::vector<TensorBox> finer;
    for (const TensorBox& box : boxes) {
      for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        finer.push_back(box);
        finer.back().offset.push_back(bounds[i]);
        finer.back().extent.push_back(bounds[i + 1] - bounds[i]);
      }
    }
    boxes = std::move(finer);
  }
  return boxes;
}

TensorBox RandomBox(const GlobalTensor& tensor, std::mt19937_64& random) {
  TensorBox box{tensor.name, tensor.type, tensor.shape, {}, {}};
  for (const uint64_t length : tensor.shape) {
    uint64_t begin = random() % (length + 1), end = random() % (length + 1);
    if (begin > end) std::swap(begin, end);
    box.offset.push_back(begin);
    box.extent.push_back(end - begin);
  }
  return box;
}

std::vector<GlobalTensor> RandomTensors(std::mt19937_64& random) {
  constexpr ElementType kTypes[] = {
      ElementType::kF32,    ElementType::kBF16, ElementType::kF16, ElementType::kF8E4M3, ElementType::kBool,
      ElementType::kF8E5M2, ElementType::kF64,  ElementType::kI8,  ElementType::kC128,   ElementType::kI64};
  std::vector<GlobalTensor> tensors;
  for (const ElementType type : kTypes) {
    GlobalTensor tensor{
        absl::StrCat("layer.", tensors.size(), ".", std::string(ElementTypeName(type))), type, {}};
    for (uint64_t dimensions = random() % 5; dimensions > 0; --dimensions)
      tensor.shape.push_back(1 + random() % 24);
    tensors.push_back(std::move(tensor));
  }
  tensors.push_back({"scalar", ElementType::kU64, {}});
  tensors.push_back({"empty", ElementType::kBF16, {0, 16}});
  tensors.push_back({"row", ElementType::kF8E4M3, {1, 100'000 + random() % 1000}});
  tensors.push_back({"large", ElementType::kF32, {700 + random() % 100, 1999}});  // more than one chunk
  return tensors;
}

}  // namespace esker::testing
