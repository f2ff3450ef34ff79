// The envelope of a v1::Part, from what a rank or a server knows of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "format/hash.h"
#include "format/proto/service.pb.h"

namespace esker {

// A part but for the save that it is of.
struct PartContent {
  Hash128 layout_digest;
  std::span<const Hash128> chunk_hashes;  // first the layout's chunks, then the item chunks
  std::span<const uint64_t> item_bytes;
  std::span<const uint64_t> item_chunk_raw_bytes;
  uint64_t raw_bytes = 0;
};

std::string EncodePartEnvelope(const v1::SaveContext& save, const PartContent& content);

}  // namespace esker
