// From a chunk as it came over the network to verified bytes in their places.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "client/chunk_source.h"
#include "client/restore_plan.h"

namespace esker {

// Used by one thread. Keeps scratch memory of two chunks.
class ChunkPlacer {
 public:
  // `plan` must outlive the placer.
  explicit ChunkPlacer(const RestorePlan* plan) : plan_(plan) {}

  // Copies the raw bytes to where they are wanted, at once into the target if the whole chunk goes to one
  // place, else through scratch memory, and checks their hash. What is encoded is checked by its CRC-32C
  // before it is decoded; for raw bytes the hash says it all.
  // Returns how many bytes it placed. kDataLoss says what is wrong with the chunk; a target may then hold
  // unverified bytes.
  absl::StatusOr<uint64_t> Place(const RestoreChunk& chunk, const FetchedChunk& fetched);

 private:
  // Into `raw`. Returns its hash.
  absl::StatusOr<Hash128> Decode(const FetchedChunk& fetched, MutableBytes raw);

  const RestorePlan* const plan_;
  std::vector<std::byte> stored_scratch_;
  std::vector<std::byte> raw_scratch_;
};

}  // namespace esker
