// Whether encoding makes a save faster, and with it the choice that users call `auto`.
//
// A save's workers encode while its sink (a network, a disk) takes what they have encoded. So it takes as
// long as the slower of the two: raw, bytes / sink; encoded, the longer of bytes / (encode · workers) and
// ratio · bytes / sink. A local NVMe outruns the cores; a shared network does not.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "format/base/bytes.h"
#include "format/codec.h"
#include "format/dtype.h"

namespace esker {

// What a codec does to some of a save's chunks.
struct CodecSample {
  double ratio = 1;       // stored bytes of raw bytes
  double encode_bps = 0;  // raw bytes per second of one thread
};

// Encodes a few of the chunks, spread over all of them: some ten milliseconds. `chunk` gives the i-th.
struct SampleChunk {
  ByteView raw;
  DType dtype;
};
CodecSample SampleCodec(const Codec& codec, size_t chunks, const std::function<SampleChunk(size_t)>& chunk);

// One sender's choices, from save to save. Not thread-safe.
class CodecChooser {
 public:
  // `workers`: threads that encode at a time.
  explicit CodecChooser(int workers) : workers_(workers) {}

  // Whether the save that begins should be encoded. Not the first one, which shows how fast the sink is; and
  // every now and then not, to see how fast it is by now.
  bool Choose();
  // How that save went: the bytes that were sent, as stored, and the time from its beginning until the sink
  // had them. Saves of little are left out.
  void Saw(uint64_t sent_bytes, double seconds);

  // Whether it is time to say anew what the codec does to such states. At the end of a save, for those to
  // come: so no save begins later for it.
  bool WantsSample() const { return saves_since_sample_ >= kSampleEvery; }
  void Learn(const CodecSample& sample);

  // The last choice and its reason in figures, for people.
  const std::string& reason() const { return reason_; }

 private:
  static constexpr int kSampleEvery = 16;

  const int workers_;
  std::optional<double> sink_bps_;
  std::optional<CodecSample> sample_;
  int saves_since_sample_ = kSampleEvery;
  bool encoded_ = false;
  int bound_by_cores_ = 0;  // saves in a row that were encoded, and whose sink could have taken more
  std::string reason_;
};

}  // namespace esker
