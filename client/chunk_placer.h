// From a chunk as it came over the network to verified bytes in their places.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "client/get_stream.h"
#include "client/restore_plan.h"

namespace esker {

// Used by one thread. Keeps scratch memory of two chunks.
class ChunkPlacer {
 public:
  // `plan` must outlive the placer.
  explicit ChunkPlacer(const RestorePlan* plan) : plan_(plan) {}

  // Checks the stored bytes' CRC-32C, decodes, checks the raw bytes' hash, and copies them to where they are
  // wanted: at once into the target if the whole chunk goes to one place, else through scratch memory.
  // Returns how many bytes it placed. kDataLoss says what is wrong with the chunk; a target may then hold
  // unverified bytes.
  absl::StatusOr<uint64_t> Place(const RestoreChunk& chunk, const FetchedChunk& fetched);

 private:
  const RestorePlan* const plan_;
  std::vector<std::byte> stored_scratch_;
  std::vector<std::byte> raw_scratch_;
};

}  // namespace esker
