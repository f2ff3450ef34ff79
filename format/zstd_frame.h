// One zstd frame (RFC 8878) of a known size: what the codecs are made of.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "format/base/bytes.h"

namespace esker {

// How a frame is made. Reading it is the same for all.
enum class FrameEffort {
  kHuffman,  // no search for repetitions, literals by Huffman: four times as fast, best for exponents
  kMatches,  // zstd's level 1: for what is full of zeros, runs or repetitions
};

// Writes `raw` to `to` as one frame with its content size and without a checksum, and returns the frame's
// bytes; 0 if it does not fit into `to` or memory is short. Thread-safe; keeps a context for each thread.
size_t EncodeZstdFrame(FrameEffort effort, ByteView raw, MutableBytes to);

// Decodes `frame` into exactly `raw`. kDataLoss if it is not one frame, and nothing else, that says it has
// raw.size() bytes and does; never writes outside `raw`, and allocates nothing by what the frame says.
// Thread-safe; keeps a context for each thread.
absl::Status DecodeZstdFrame(ByteView frame, MutableBytes raw);

}  // namespace esker
