#include "format/plane_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace esker {
namespace {

// Enough for an entropy within a hundredth: by chance, 2,048 random bytes seem to have 98.9%.
constexpr size_t kSampleElements = 2048;
// The sample comes in runs of so many elements, spread over the block.
constexpr size_t kRunElements = 32;
constexpr size_t kMaxSampleBytes = kSampleElements * kMaxPlanes;

constexpr double kWorthwhile = 0.95;
// A plane of which more than this is one value may consist of runs, which Huffman can't shorten below a bit a
// byte.
constexpr double kMaybeRuns = 0.6;

bool IsFloat(DType dtype) {
  switch (dtype) {
    case DType::kF16:
    case DType::kBF16:
    case DType::kF32:
    case DType::kF64:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kF8E4M3FNUZ:
    case DType::kF8E5M2FNUZ:
    case DType::kF8E8M0:
    case DType::kC64:
    case DType::kC128:
      return true;
    default:
      return false;
  }
}

// The rotation that brings a float's exponent to its top byte: 1 bit, the sign, and 4 bits for F64, whose top
// byte then is the exponent's low 8 bits. 0 for all that has no exponent, or has only one byte.
int FloatRotation(DType dtype, size_t width) {
  if (!IsFloat(dtype) || width == 1) return 0;
  return width == 8 ? 4 : 1;
}

// Whether one of a sample of all elements has its highest bit set.
bool AnyNegative(ByteView raw, size_t width) {
  const size_t step = std::max<size_t>(raw.size() / width / kSampleElements, 1) * width;
  for (size_t top = width - 1; top < raw.size(); top += step) {
    if ((raw[top] & std::byte{0x80}) != std::byte{0}) return true;
  }
  return false;
}

// Runs of whole elements from all over a block, one after the other.
class Sample {
 public:
  Sample(ByteView block, size_t width);

  // The planes of the sample's elements in `shape`, each of count() bytes.
  void Split(PlaneShape shape, std::array<std::byte*, kMaxPlanes>* planes);
  size_t count() const { return bytes_ / width_; }

 private:
  const size_t width_;
  size_t bytes_ = 0;
  std::array<std::byte, kMaxSampleBytes> elements_;
  std::array<std::byte, kMaxSampleBytes> planes_;
};

Sample::Sample(ByteView block, size_t width) : width_(width) {
  if (block.size() <= kSampleElements * width) {
    bytes_ = block.size();
    std::memcpy(elements_.data(), block.data(), block.size());
    return;
  }
  constexpr size_t kRuns = kSampleElements / kRunElements;
  const size_t run_bytes = kRunElements * width;
  const size_t spacing = block.size() / width / kRuns * width;
  for (size_t run = 0; run < kRuns; ++run, bytes_ += run_bytes) {
    std::memcpy(elements_.data() + bytes_, block.data() + run * spacing, run_bytes);
  }
}

void Sample::Split(PlaneShape shape, std::array<std::byte*, kMaxPlanes>* planes) {
  for (size_t k = 0; k < width_; ++k) (*planes)[k] = planes_.data() + k * count();
  SplitPlanes(shape, elements_.data(), count(), planes->data());
}

struct Statistics {
  double entropy;  // 1: as much as random bytes have
  double largest;  // the share of the most frequent value
};

Statistics StatisticsOf(ByteView plane) {
  // n * log2(n) for every count that there can be.
  static const auto kWeights = [] {
    std::array<double, kSampleElements + 1> weights = {};
    for (size_t n = 1; n < weights.size(); ++n) weights[n] = static_cast<double>(n) * std::log2(n);
    return weights;
  }();
  std::array<uint32_t, 256> counts = {};
  for (const std::byte value : plane) ++counts[static_cast<uint8_t>(value)];
  double weights = 0;
  uint32_t largest = 0;
  for (const uint32_t count : counts) {
    weights += kWeights[count];
    largest = std::max(largest, count);
  }
  const auto size = static_cast<double>(plane.size());
  return {(std::log2(size) - weights / size) / 8, largest / size};
}

}  // namespace

size_t PlaneWidth(DType dtype, uint64_t raw_bytes) {
  size_t width = ElementBytes(dtype);
  if (dtype == DType::kC64 || dtype == DType::kC128) width /= 2;
  return raw_bytes % width == 0 ? width : 1;
}

PlanePlan PlanPlanes(ByteView raw, DType dtype, size_t block_bytes) {
  PlanePlan plan;
  plan.shape.width = PlaneWidth(dtype, raw.size());
  // Without signs there is nothing to rotate out, and the exponent's lowest bit is as good as noise.
  if (AnyNegative(raw, plan.shape.width)) plan.shape.rotation = FloatRotation(dtype, plan.shape.width);
  double stored_bytes = 0;
  for (size_t at = 0; at < raw.size(); at += block_bytes) {
    const ByteView block = raw.subspan(at, std::min(block_bytes, raw.size() - at));
    Sample sample(block, plan.shape.width);
    std::array<std::byte*, kMaxPlanes> planes = {};
    sample.Split(plan.shape, &planes);
    auto& efforts = plan.blocks.emplace_back();
    for (size_t k = 0; k < plan.shape.width; ++k) {
      const Statistics found = StatisticsOf({planes[k], sample.count()});
      efforts[k] = found.entropy > kWorthwhile                     ? PlaneEffort::kStore
                   : found.largest > kMaybeRuns || !IsFloat(dtype) ? PlaneEffort::kBoth
                                                                   : PlaneEffort::kHuffman;
      const double share = efforts[k] == PlaneEffort::kStore ? 1 : found.entropy;
      stored_bytes += share * static_cast<double>(block.size()) / static_cast<double>(plan.shape.width);
    }
  }
  plan.is_worth_it = stored_bytes < kWorthwhile * static_cast<double>(raw.size());
  return plan;
}

}  // namespace esker
