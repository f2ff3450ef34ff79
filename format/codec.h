// The codec table. A codec is a number, stored with each chunk, and a pair of pure functions; decoding needs
// only the chunk. (A delta needs another chunk as well, and is no row of the table: delta.h.)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/dtype.h"

namespace esker {

// Stored: never change or reuse a number.
enum class CodecId : uint8_t {
  kRaw = 0,
  kZstd = 1,
  kPlanes = 2,
  kDelta = 3,
};

// A row of the table. Encode and decode are thread-safe; they may keep scratch memory per thread.
struct Codec {
  CodecId id;
  std::string_view name;

  // Encodes `raw` (elements of `dtype`) into `to`, which is cleared first. Returns false if the result would
  // not be smaller than `raw`; then the chunk is stored raw. `to` may be reused from call to call: it then
  // allocates nothing.
  bool (*encode)(ByteView raw, DType dtype, std::vector<std::byte>* to);

  // Decodes `stored` into exactly `raw`. kDataLoss if it is not an encoding of that many bytes; never writes
  // beyond `raw`, whatever `stored` holds.
  absl::Status (*decode)(ByteView stored, DType dtype, MutableBytes raw);
};

// The row, or nullptr if this version has none, as for kDelta.
const Codec* FindCodec(CodecId id);
const Codec* FindCodec(std::string_view name);
// What a stored number stands for; nothing if this version does not know it.
std::optional<CodecId> CodecFromNumber(uint64_t number);
std::string_view CodecName(CodecId id);
// Every row, for help texts and tests.
std::span<const Codec> AllCodecs();

}  // namespace esker
