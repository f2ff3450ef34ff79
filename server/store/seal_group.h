// Sealing: a part and its chunks become durable, then visible. Many parts at a time share each fdatasync and
// one index write.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/commit_context.h"
#include "server/store/index_records.h"
#include "server/store/store.h"

namespace esker::store {

// A part that was checked against its layout.
struct SealRequest {
  PartRef part;
  std::string_view part_envelope;  // the caller's
  std::string layout_envelope{};
  Hash128 part_digest;
  Hash128 layout_digest;
  uint64_t raw_bytes = 0;
  // The distinct chunks in the part's order, and how many raw bytes each has.
  std::vector<Hash128> chunks{};
  std::vector<uint64_t> chunk_raw_bytes{};

  PartKey key() const { return {part.save, part.rank}; }
};

// Decodes and checks what a client sent. kInvalidArgument: envelopes, layout or part are not valid, are not
// of this PartRef, or don't fit each other. kFailedPrecondition: no layout was given and the store has none
// of that digest.
absl::StatusOr<SealRequest> PrepareSeal(const Index& index, const PartRef& part,
                                        std::string_view part_envelope, std::string_view layout_envelope);

// What was answered when the part was sealed before: nothing if it was not; kAlreadyExists, naming both
// digests, if it was sealed with another content.
absl::StatusOr<std::optional<SealResult>> FindSealed(const Index& index, const SealRequest& request);

// The entry as clients and manifests have it.
void FillPartEntry(uint32_t rank, const PartEntry& from, v1::PartEntry* to);

struct SealWork {
  const SealRequest* request = nullptr;
  absl::StatusOr<SealResult> result = SealResult{};
};

// Seals the parts, which are distinct and whose chunks the callers have pinned, and fills in the results. On
// the committer's thread. Parts are independent: one that lacks chunks or contradicts a sealed one does not
// hold up the others.
void SealTogether(CommitContext* context, std::span<SealWork*> works, std::vector<LetGo>* let_go);

}  // namespace esker::store
