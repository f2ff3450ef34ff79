#include "tools/fault_names.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"
#include "format/box.h"
#include "format/dtype.h"
#include "format/envelope.h"
#include "format/layout.h"

namespace esker {
namespace {

uint64_t BytesOf(const v1::Shard& shard) {
  uint64_t bytes = ElementBytes(*DTypeFromNumber(shard.dtype()));
  for (const uint64_t extent : shard.extent()) bytes *= extent;
  return bytes;
}

void AddName(const PartMap& map, uint64_t begin, uint64_t bytes, const std::string& name,
             std::vector<std::vector<std::string>>* names) {
  if (bytes == 0) return;
  const size_t last = map.ChunkAt(begin + bytes - 1);
  for (size_t chunk = map.ChunkAt(begin); chunk <= last; ++chunk) {
    // Boxes of one tensor that share a chunk are neighbours.
    std::vector<std::string>& list = (*names)[chunk];
    if (list.empty() || list.back() != name) list.push_back(name);
  }
}

}  // namespace

std::vector<std::vector<std::string>> NamesByChunk(const v1::Part& part, const v1::Layout& layout) {
  const PartMap map(part, layout);
  std::vector<std::vector<std::string>> names(map.chunks().size());
  std::vector<const v1::Shard*> shards;
  for (const v1::Shard& shard : layout.shards()) shards.push_back(&shard);
  std::sort(shards.begin(), shards.end(),
            [](const v1::Shard* a, const v1::Shard* b) { return a->part_offset() < b->part_offset(); });
  for (const v1::Shard* shard : shards)
    AddName(map, shard->part_offset(), BytesOf(*shard), shard->name(), &names);
  for (const PartMap::Item& item : map.items()) {
    AddName(map, item.part_offset, item.bytes, absl::StrCat("item ", item.name), &names);
  }
  return names;
}

absl::StatusOr<std::vector<std::vector<std::string>>> FaultNames::Fetch(uint32_t rank) {
  const Deadline deadline = Deadline::After(timeout_ms_);
  v1::GetPartsRequest parts_request;
  parts_request.set_run(checkpoint_.run());
  parts_request.set_step(checkpoint_.step());
  parts_request.set_save_id(checkpoint_.save_id());
  parts_request.add_ranks(rank);
  ESKER_ASSIGN_OR_RETURN(
      const v1::GetPartsResponse parts,
      connection_->CallUntil("GetParts", &v1::Store::Stub::GetParts, parts_request, deadline));
  if (parts.part_envelopes_size() != 1) return absl::DataLossError(absl::StrCat("no part of rank ", rank));
  ESKER_ASSIGN_OR_RETURN(const v1::Part part,
                         DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, parts.part_envelopes(0)));

  v1::GetLayoutsRequest layouts_request;
  layouts_request.add_digests(part.layout_digest());
  ESKER_ASSIGN_OR_RETURN(
      const v1::GetLayoutsResponse layouts,
      connection_->CallUntil("GetLayouts", &v1::Store::Stub::GetLayouts, layouts_request, deadline));
  if (layouts.layout_envelopes_size() != 1)
    return absl::DataLossError(absl::StrCat("no layout of rank ", rank));
  ESKER_ASSIGN_OR_RETURN(const v1::Layout layout,
                         DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, layouts.layout_envelopes(0)));
  ESKER_RETURN_IF_ERROR(ValidateLayout(layout));
  ESKER_RETURN_IF_ERROR(ValidatePart(part, layout));
  return NamesByChunk(part, layout);
}

absl::StatusOr<std::vector<std::string>> FaultNames::Of(uint32_t rank, uint32_t chunk_index) {
  auto known = ranks_.find(rank);
  if (known == ranks_.end()) {
    ESKER_ASSIGN_OR_RETURN(std::vector<std::vector<std::string>> names, Fetch(rank));
    known = ranks_.emplace(rank, std::move(names)).first;
  }
  if (chunk_index >= known->second.size()) {
    return absl::OutOfRangeError(absl::StrCat("rank ", rank, " has no chunk ", chunk_index));
  }
  return known->second[chunk_index];
}

}  // namespace esker
