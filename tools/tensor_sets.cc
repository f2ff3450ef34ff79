#include "tools/tensor_sets.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <random>

#include "format/base/status.h"
#include "tools/safetensors.h"

namespace esker {
namespace {

constexpr double kWeightDeviation = 0.02;
constexpr double kGradientDeviation = 1e-4;

// A float format of up to 16 bits: sign, exponent, mantissa.
struct SmallFloat {
  int exponent_bits;
  int mantissa_bits;
};
constexpr SmallFloat kBFloat16 = {8, 7};
constexpr SmallFloat kFloat16 = {5, 10};
constexpr SmallFloat kFloat8E4M3 = {4, 3};
constexpr SmallFloat kFloat8E5M2 = {5, 2};

// To the nearest, ties to even. For values that the format holds: neither NaN nor near its largest.
uint16_t Round(double value, SmallFloat format) {
  const uint16_t sign = std::signbit(value) ? 1 << (format.exponent_bits + format.mantissa_bits) : 0;
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  // The spacing of numbers around `value`: that of subnormals at least.
  const int exponent = value == 0 ? 1 - bias : std::max(std::ilogb(value), 1 - bias);
  const auto steps =
      static_cast<uint32_t>(std::nearbyint(std::ldexp(std::abs(value), format.mantissa_bits - exponent)));
  // An implicit leading bit, where it is set, carries into the exponent's place.
  const uint32_t rest = (static_cast<uint32_t>(exponent + bias - 1) << format.mantissa_bits) + steps;
  return static_cast<uint16_t>(sign | rest);
}

// `make` gives one element after the other.
template <typename Make>
TensorSet Generate(std::string name, DType dtype, uint64_t bytes, const Make& make) {
  TensorSet set = {std::move(name), dtype, std::vector<std::byte>(bytes)};
  using Element = decltype(make());
  for (uint64_t at = 0; at < bytes; at += sizeof(Element))
    StoreLittle<Element>(set.bytes.data() + at, make());
  return set;
}

void AddWeights(uint64_t bytes, std::vector<TensorSet>* sets) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> weight(0, kWeightDeviation);
  const auto add = [&](DType dtype, const auto& make) {
    sets->push_back(Generate("gaussian weights", dtype, bytes, make));
  };
  add(DType::kBF16, [&] { return Round(weight(random), kBFloat16); });
  add(DType::kF16, [&] { return Round(weight(random), kFloat16); });
  add(DType::kF32, [&] { return static_cast<float>(weight(random)); });
  add(DType::kF64, [&] { return weight(random); });
  add(DType::kF8E4M3, [&] { return static_cast<uint8_t>(Round(weight(random), kFloat8E4M3)); });
  add(DType::kF8E5M2, [&] { return static_cast<uint8_t>(Round(weight(random), kFloat8E5M2)); });
  // Four deviations to the largest step.
  add(DType::kI8, [&] {
    return static_cast<int8_t>(
        std::clamp(std::nearbyint(weight(random) / kWeightDeviation * 32), -127.0, 127.0));
  });
}

// The running means of gradients and of their squares, whose scale differs from row to row.
void AddMoments(uint64_t bytes, std::vector<TensorSet>* sets) {
  constexpr int kRow = 1024;
  std::mt19937_64 random(2);
  std::normal_distribution<double> unit;
  int left = 0;
  double scale = 0;
  const auto gradient = [&] {
    if (left-- == 0) {
      scale = kGradientDeviation * std::exp2(2 * unit(random));
      left = kRow - 1;
    }
    return scale * unit(random);
  };
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto add = [&](const char* name, const auto& value) {
      sets->push_back(dtype == DType::kF32
                          ? Generate(name, dtype, bytes, [&] { return static_cast<float>(value()); })
                          : Generate(name, dtype, bytes, [&] { return Round(value(), kBFloat16); }));
    };
    add("adam first moment", gradient);
    add("adam second moment", [&] {
      const double one = gradient();
      return one * one;
    });
  }
}

void AddOthers(uint64_t bytes, std::vector<TensorSet>* sets) {
  std::mt19937_64 random(3);
  // As words of a language: a few ids make up most of a text.
  std::exponential_distribution<double> rank(1.0 / 12);
  const auto token = [&] { return static_cast<int64_t>(std::min(std::exp2(rank(random)), 50'000.0)); };
  sets->push_back(Generate("token ids", DType::kI32, bytes, [&] { return static_cast<int32_t>(token()); }));
  sets->push_back(Generate("token ids", DType::kI64, bytes, token));
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    sets->push_back({"zeros", dtype, std::vector<std::byte>(bytes)});
  }
  for (const DType dtype : {DType::kU8, DType::kBF16, DType::kF32}) {
    sets->push_back(Generate("random bytes", dtype, bytes, [&] { return uint64_t{random()}; }));
  }
}

TensorSet RoundToBf16(const TensorSet& from) {
  const std::byte* at = from.bytes.data();
  return Generate(from.name + ", rounded", DType::kBF16, from.bytes.size() / 2, [&] {
    const auto bits = LoadLittle<uint32_t>(at);
    at += sizeof(bits);
    // Rounds to even in the bits, which keeps what is no number apart from the rest.
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  });
}

}  // namespace

std::vector<TensorSet> GenerateTensorSets(uint64_t bytes) {
  std::vector<TensorSet> sets;
  AddWeights(bytes, &sets);
  AddMoments(bytes, &sets);
  AddOthers(bytes, &sets);
  return sets;
}

absl::StatusOr<std::vector<TensorSet>> LoadTensorSets(const std::string& path) {
  ESKER_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  std::map<DType, TensorSet> by_dtype;
  for (const SafetensorsEntry& entry : file->entries()) {
    const auto dtype = static_cast<DType>(entry.tensor.type);
    TensorSet& set = by_dtype[dtype];
    set.name = std::filesystem::path(path).filename();
    set.dtype = dtype;
    const ByteView bytes = file->Bytes(entry);
    set.bytes.insert(set.bytes.end(), bytes.begin(), bytes.end());
  }
  std::vector<TensorSet> sets;
  for (auto& [dtype, set] : by_dtype) {
    if (set.bytes.empty()) continue;
    if (dtype == DType::kF32) sets.push_back(RoundToBf16(set));
    sets.push_back(std::move(set));
  }
  return sets;
}

}  // namespace esker
