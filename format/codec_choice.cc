#include "format/codec_choice.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "absl/strings/str_format.h"

namespace esker {
namespace {

constexpr size_t kSampledChunks = 4;
// Less is not worth the cores' time.
constexpr double kLeastGain = 0.15;
// Less is over before the sink is at its speed.
constexpr uint64_t kLeastBytes = 32 << 20;
// An encoded save this near to what the cores can give says only that the sink is at least so fast.
constexpr double kNearCores = 0.8;
// After so many of those in a row, one save is raw.
constexpr int kProbeAfter = 16;

}  // namespace

CodecSample SampleCodec(const Codec& codec, size_t chunks, const std::function<SampleChunk(size_t)>& chunk) {
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  double seconds = 0;
  std::vector<std::byte> encoded;
  const size_t count = std::min(chunks, kSampledChunks);
  for (size_t i = 0; i < count; ++i) {
    // The middles of as many equal parts.
    const SampleChunk sampled = chunk((2 * i + 1) * chunks / (2 * count));
    const auto begin = std::chrono::steady_clock::now();
    const bool smaller = codec.encode(sampled.raw, sampled.dtype, &encoded);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    raw_bytes += sampled.raw.size();
    stored_bytes += smaller ? encoded.size() : sampled.raw.size();
  }
  if (raw_bytes == 0 || seconds <= 0) return {};
  return {.ratio = static_cast<double>(stored_bytes) / static_cast<double>(raw_bytes),
          .encode_bps = static_cast<double>(raw_bytes) / seconds};
}

void CodecChooser::Learn(const CodecSample& sample) {
  sample_ = sample;
  saves_since_sample_ = 0;
}

bool CodecChooser::Choose() {
  encoded_ = false;
  if (!sink_bps_.has_value() || !sample_.has_value()) {
    reason_ = "raw: to measure how fast the sink is";
    return false;
  }
  if (bound_by_cores_ >= kProbeAfter) {
    reason_ = "raw: to measure how fast the sink is by now";
    return false;
  }
  const double encode_bps = sample_->encode_bps * workers_;
  const double gain = encode_bps > 0 ? 1 - std::max(*sink_bps_ / encode_bps, sample_->ratio) : 0;
  encoded_ = gain >= kLeastGain;
  reason_ = absl::StrFormat(
      "%s: the sink takes %.2f GB/s, %d workers encode %.2f GB/s to %.2f of the size: %.0f%% less time",
      encoded_ ? "encoded" : "raw", *sink_bps_ / 1e9, workers_, encode_bps / 1e9, sample_->ratio, 100 * gain);
  return encoded_;
}

void CodecChooser::Saw(uint64_t sent_bytes, double seconds) {
  ++saves_since_sample_;
  if (sent_bytes < kLeastBytes || seconds <= 0) return;
  const double rate = static_cast<double>(sent_bytes) / seconds;
  if (!encoded_) {
    sink_bps_ = rate;
    bound_by_cores_ = 0;
    return;
  }
  const double cores_give = sample_->encode_bps * workers_ * sample_->ratio;
  if (rate < kNearCores * cores_give) {
    sink_bps_ = rate;
    bound_by_cores_ = 0;
  } else {
    sink_bps_ = std::max(*sink_bps_, rate);
    ++bound_by_cores_;
  }
}

}  // namespace esker
