#include "format/codec_choice.h"

#include <gtest/gtest.h>

#include <vector>

namespace esker::testing {
namespace {

constexpr uint64_t kSent = uint64_t{1} << 30;
constexpr double kGB = 1e9;
constexpr CodecSample kFloats = {.ratio = 0.66, .encode_bps = 1.6 * kGB};

double SecondsAt(double bps) { return static_cast<double>(kSent) / bps; }

// A chooser that knows what the codec does, and has seen a raw save.
CodecChooser Knowing(int workers, const CodecSample& sample, double sink_bps) {
  CodecChooser chooser(workers);
  EXPECT_FALSE(chooser.Choose());
  chooser.Saw(kSent, SecondsAt(sink_bps));
  chooser.Learn(sample);
  return chooser;
}

TEST(CodecChooser, SavesRawAsLongAsItKnowsTooLittle) {
  CodecChooser chooser(8);
  EXPECT_FALSE(chooser.Choose());
  EXPECT_NE(chooser.reason().find("measure"), std::string::npos);
  chooser.Learn(kFloats);
  chooser.Saw(1000, 1);  // too little to tell
  EXPECT_FALSE(chooser.Choose());
}

TEST(CodecChooser, WantsASampleAtOnceAndThenFromTimeToTime) {
  CodecChooser chooser(8);
  EXPECT_TRUE(chooser.WantsSample());
  chooser.Learn(kFloats);
  EXPECT_FALSE(chooser.WantsSample());
  for (int save = 0; save < 20; ++save) chooser.Saw(kSent, 1);
  EXPECT_TRUE(chooser.WantsSample());
}

TEST(CodecChooser, EncodesForASlowSink) {
  CodecChooser chooser = Knowing(8, kFloats, 1 * kGB);
  EXPECT_TRUE(chooser.Choose());
  EXPECT_NE(chooser.reason().find("34% less time"), std::string::npos) << chooser.reason();
}

TEST(CodecChooser, SavesRawToASinkThatOutrunsTheCores) {
  EXPECT_FALSE(Knowing(2, kFloats, 5 * kGB).Choose());
  EXPECT_TRUE(Knowing(16, kFloats, 5 * kGB).Choose());
}

TEST(CodecChooser, SavesRawWhatDoesNotShrink) {
  EXPECT_FALSE(Knowing(8, {.ratio = 1, .encode_bps = 5 * kGB}, 0.1 * kGB).Choose());
  EXPECT_FALSE(Knowing(8, {}, 0.1 * kGB).Choose());
}

TEST(CodecChooser, FollowsASinkThatGetsSlowerAndFaster) {
  CodecChooser chooser = Knowing(4, kFloats, 8 * kGB);
  EXPECT_FALSE(chooser.Choose());
  chooser.Saw(kSent, SecondsAt(1 * kGB));
  EXPECT_TRUE(chooser.Choose());
  // From now on the cores are what bounds it: the sink shows no more than they give, until a save is raw
  // again.
  int encoded = 0;
  while (chooser.Choose() && encoded < 1000) {
    chooser.Saw(kSent, SecondsAt(4 * 1.6 * kGB * 0.66));
    ++encoded;
  }
  EXPECT_GT(encoded, 3);
  EXPECT_LT(encoded, 100);
  chooser.Saw(kSent, SecondsAt(8 * kGB));
  EXPECT_FALSE(chooser.Choose());
}

TEST(SampleCodec, MeasuresWhatTheCodecDoes) {
  const std::vector<float> same(1 << 20, 1.5F);
  const ByteView raw = std::as_bytes(std::span(same));
  const CodecSample sample = SampleCodec(*FindCodec(CodecId::kPlanes), 10, [&](size_t chunk) {
    EXPECT_LT(chunk, 10u);
    return SampleChunk{raw, DType::kF32};
  });
  EXPECT_LT(sample.ratio, 0.1);
  EXPECT_GT(sample.encode_bps, 0);
  const CodecSample none = SampleCodec(*FindCodec(CodecId::kPlanes), 0, [](size_t) { return SampleChunk{}; });
  EXPECT_EQ(none.ratio, 1);
}

}  // namespace
}  // namespace esker::testing
