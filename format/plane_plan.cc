#include "format/plane_plan.h"

#include <algorithm>
#include <vector>

namespace esker {
namespace {

// A sample is this share of the chunk, but no less than fits a small chunk whole.
constexpr size_t kSampleShare = 100;
constexpr size_t kMinSampleBytes = 16 << 10;
// Taken in pieces, each long enough to show repetitions.
constexpr size_t kPieceBytes = 4 << 10;

bool IsWorthIt(size_t stored, size_t raw) { return stored <= raw - raw / 20; }

// Equally spaced pieces of `raw`, in whole elements.
const std::vector<std::byte>& TakeSample(ByteView raw) {
  thread_local std::vector<std::byte> sample;
  sample.clear();
  const size_t wanted = std::max(raw.size() / kSampleShare, kMinSampleBytes);
  if (raw.size() <= wanted) {
    sample.assign(raw.begin(), raw.end());
    return sample;
  }
  const size_t pieces = wanted / kPieceBytes;
  const size_t spacing = raw.size() / pieces / kPieceBytes * kPieceBytes;
  for (size_t i = 0; i < pieces; ++i) {
    const ByteView piece = raw.subspan(i * spacing, kPieceBytes);
    sample.insert(sample.end(), piece.begin(), piece.end());
  }
  return sample;
}

bool AnyNegative(ByteView elements, size_t width) {
  for (size_t top = width - 1; top < elements.size(); top += width) {
    if ((elements[top] & std::byte{0x80}) != std::byte{0}) return true;
  }
  return false;
}

struct Trial {
  std::optional<FrameEffort> effort;
  size_t stored_bytes;
};

Trial TryPlane(ByteView plane) {
  thread_local std::vector<std::byte> room;
  room.resize(2 * plane.size());
  const auto bytes_by = [&](FrameEffort effort) {
    const size_t frame_bytes = EncodeZstdFrame(effort, plane, room);
    return frame_bytes == 0 ? plane.size() : frame_bytes;
  };
  const size_t huffman = bytes_by(FrameEffort::kHuffman);
  const size_t matches = bytes_by(FrameEffort::kMatches);
  // The search for matches is slow: it must gain as much again.
  if (IsWorthIt(matches, huffman)) return {FrameEffort::kMatches, matches};
  if (IsWorthIt(huffman, plane.size())) return {FrameEffort::kHuffman, huffman};
  return {std::nullopt, plane.size()};
}

}  // namespace

size_t PlaneCount(DType dtype, uint64_t raw_bytes) {
  size_t width = ElementBytes(dtype);
  if (dtype == DType::kC64 || dtype == DType::kC128) width /= 2;
  return raw_bytes % width == 0 ? width : 1;
}

int FloatRotation(DType dtype) {
  switch (dtype) {
    case DType::kF16:
    case DType::kBF16:
    case DType::kF32:
    case DType::kC64:
      return 1;
    case DType::kF64:
    case DType::kC128:
      return 4;
    default:
      return 0;
  }
}

std::optional<PlanePlan> PlanPlanes(ByteView raw, DType dtype) {
  PlanePlan plan;
  plan.shape.width = PlaneCount(dtype, raw.size());
  const std::vector<std::byte>& sample = TakeSample(raw);
  // Without signs there is nothing to rotate out: the exponent's lowest bit is as good as noise.
  if (plan.shape.width > 1 && AnyNegative(sample, plan.shape.width))
    plan.shape.rotation = FloatRotation(dtype);

  thread_local std::vector<std::byte> planes;
  planes.resize(sample.size());
  const size_t count = sample.size() / plan.shape.width;
  std::array<std::byte*, kMaxPlanes> places = {};
  for (size_t k = 0; k < plan.shape.width; ++k) places[k] = planes.data() + k * count;
  SplitPlanes(plan.shape, sample.data(), count, places.data());

  size_t stored_bytes = 0;
  for (size_t k = 0; k < plan.shape.width; ++k) {
    const Trial trial = TryPlane({places[k], count});
    plan.efforts[k] = trial.effort;
    stored_bytes += trial.stored_bytes;
  }
  if (!IsWorthIt(stored_bytes, sample.size())) return std::nullopt;
  return plan;
}

}  // namespace esker
