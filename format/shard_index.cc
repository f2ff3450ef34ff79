#include "format/shard_index.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

// By the interval in each dimension, one after the other, then by rank: so the shards of a group stand
// together on every level, and the replicas of one box in the order of their ranks.
bool NestedBefore(const StoredShard& a, const StoredShard& b) {
  for (size_t d = 0; d < a.box.rank(); ++d) {
    const auto a_key = std::tie(a.box.offset[d], a.box.extent[d]);
    const auto b_key = std::tie(b.box.offset[d], b.box.extent[d]);
    if (a_key != b_key) return a_key < b_key;
  }
  return std::tie(a.rank, a.part_offset) < std::tie(b.rank, b.part_offset);
}

uint64_t ElementsIn(const std::vector<Box>& boxes) {
  uint64_t count = 0;
  for (const Box& box : boxes) count += box.elements();
  return count;
}

std::vector<Box> PartsInside(const std::vector<Box>& boxes, const Box& where) {
  std::vector<Box> parts;
  for (const Box& box : boxes) {
    if (std::optional<Box> part = Intersect(box, where); part.has_value()) parts.push_back(*std::move(part));
  }
  return parts;
}

// A box inside `where` that none of the disjoint boxes in `held` touches; they don't fill it. Each step cuts
// away the box in the middle of the list and goes on in a remainder that is not full, with the boxes inside
// it.
Box FindHole(Box where, std::vector<Box> held) {
  while (!held.empty()) {
    bool found = false;
    for (Box& rest : Subtract(where, held[held.size() / 2])) {
      std::vector<Box> inside = PartsInside(held, rest);
      if (ElementsIn(inside) == rest.elements()) continue;
      where = std::move(rest);
      held = std::move(inside);
      found = true;
      break;
    }
    ESKER_CHECK(found);
  }
  return where;
}

}  // namespace

// Shards with one and the same interval in this level's dimension, and in those before.
struct TensorShards::Group {
  uint64_t begin;
  uint64_t end;
  uint64_t max_end;  // the largest end of this group and its siblings before it
  size_t first;      // its members
  size_t last;
};

TensorShards::TensorShards(DType dtype, std::vector<uint64_t> shape, std::vector<StoredShard> shards)
    : dtype_(dtype), shape_(std::move(shape)), shards_(std::move(shards)) {
  const auto empty =
      std::partition(shards_.begin(), shards_.end(), [](const StoredShard& s) { return !s.box.empty(); });
  stored_ = static_cast<size_t>(empty - shards_.begin());
  std::sort(shards_.begin(), empty, NestedBefore);
  BuildLevels();
}

TensorShards::~TensorShards() = default;
TensorShards::TensorShards(TensorShards&&) noexcept = default;

// One pass over the sorted shards: where the interval of dimension d or of one before it differs from the
// shard before, a new group begins on level d.
void TensorShards::BuildLevels() {
  const size_t dimensions = shape_.size();
  levels_.resize(dimensions);
  for (size_t i = 0; i < stored_; ++i) {
    const Box& box = shards_[i].box;
    size_t d = 0;
    if (i > 0) {
      const Box& before = shards_[i - 1].box;
      while (d < dimensions && box.offset[d] == before.offset[d] && box.extent[d] == before.extent[d]) ++d;
    }
    // Groups on the levels below a new group have no sibling before them.
    for (bool has_sibling = i > 0; d < dimensions; ++d, has_sibling = false) {
      const uint64_t end = box.offset[d] + box.extent[d];
      const uint64_t max_end = has_sibling ? std::max(end, levels_[d].back().max_end) : end;
      const size_t first = d + 1 < dimensions ? levels_[d + 1].size() : i;
      levels_[d].push_back({box.offset[d], end, max_end, first, first});
    }
    for (size_t level = 0; level < dimensions; ++level) {
      levels_[level].back().last = level + 1 < dimensions ? levels_[level + 1].size() : i + 1;
    }
  }
}

void TensorShards::CollectReplicas(const Box& box, size_t level, size_t first, size_t last,
                                   std::vector<Replicas>* found) const {
  if (level == levels_.size()) {
    found->push_back({first, last});
    return;
  }
  const uint64_t wanted_begin = box.offset[level];
  const uint64_t wanted_end = wanted_begin + box.extent[level];
  const auto siblings = levels_[level].begin();
  // max_end never falls and begin neither, so both ends of what can overlap are found by halving.
  auto at = std::partition_point(siblings + first, siblings + last,
                                 [&](const Group& group) { return group.max_end <= wanted_begin; });
  const auto end =
      std::partition_point(at, siblings + last, [&](const Group& group) { return group.begin < wanted_end; });
  for (; at != end; ++at) {
    if (at->end > wanted_begin) CollectReplicas(box, level + 1, at->first, at->last, found);
  }
}

std::vector<TensorShards::Replicas> TensorShards::OverlappingReplicas(const Box& box) const {
  ESKER_CHECK(box.rank() == shape_.size());
  std::vector<Replicas> found;
  if (box.empty() || stored_ == 0) return found;
  CollectReplicas(box, 0, 0, levels_.empty() ? stored_ : levels_[0].size(), &found);
  return found;
}

std::vector<const StoredShard*> TensorShards::Overlapping(const Box& box) const {
  std::vector<const StoredShard*> shards;
  for (const Replicas& replicas : OverlappingReplicas(box)) {
    for (size_t i = replicas.first; i < replicas.last; ++i) shards.push_back(&shards_[i]);
  }
  return shards;
}

// The replica of `rank`, or nullptr.
const StoredShard* TensorShards::HeldBy(const Replicas& replicas, uint32_t rank) const {
  const auto begin = shards_.begin() + replicas.first;
  const auto end = shards_.begin() + replicas.last;
  const auto at =
      std::partition_point(begin, end, [&](const StoredShard& shard) { return shard.rank < rank; });
  return at != end && at->rank == rank ? &*at : nullptr;
}

absl::StatusOr<std::vector<PlannedRead>> TensorShards::Plan(const Box& wanted,
                                                            uint32_t preferred_rank) const {
  ESKER_RETURN_IF_ERROR(ValidateBox(wanted, shape_, ElementBytes(dtype_)));
  if (wanted.empty()) return std::vector<PlannedRead>();
  const std::vector<Replicas> found = OverlappingReplicas(wanted);
  // One shard with all of it is the usual case: the same topology, or a replicated tensor.
  std::vector<Replicas> whole;
  uint64_t whole_shards = 0;
  bool preferred_holds_some = false;
  for (const Replicas& replicas : found) {
    const StoredShard* preferred = HeldBy(replicas, preferred_rank);
    preferred_holds_some |= preferred != nullptr;
    if (!Contains(shards_[replicas.first].box, wanted)) continue;
    if (preferred != nullptr) return std::vector<PlannedRead>{{wanted, preferred}};
    whole.push_back(replicas);
    whole_shards += replicas.last - replicas.first;
  }
  if (!whole.empty() && !preferred_holds_some) {
    uint64_t choice = preferred_rank % whole_shards;
    for (const Replicas& replicas : whole) {
      const uint64_t count = replicas.last - replicas.first;
      if (choice < count) return std::vector<PlannedRead>{{wanted, &shards_[replicas.first + choice]}};
      choice -= count;
    }
  }
  return PlanPieces(wanted, found, preferred_rank);
}

// Takes from each box what no box before it has, in this order: the preferred rank's, then boxes with all
// that is wanted, then as they are sorted. What comes before a box is asked of the index, so that a grid
// costs its boxes and not their square.
absl::StatusOr<std::vector<PlannedRead>> TensorShards::PlanPieces(const Box& wanted,
                                                                  const std::vector<Replicas>& found,
                                                                  uint32_t preferred_rank) const {
  struct Source {
    int turn;
    size_t first;
    const StoredShard* shard;
    bool operator<(const Source& other) const {
      return std::tie(turn, first) < std::tie(other.turn, other.first);
    }
  };
  const auto source_of = [&](const Replicas& replicas) -> Source {
    if (const StoredShard* preferred = HeldBy(replicas, preferred_rank))
      return {0, replicas.first, preferred};
    const StoredShard* chosen = &shards_[replicas.first + preferred_rank % (replicas.last - replicas.first)];
    return {Contains(chosen->box, wanted) ? 1 : 2, replicas.first, chosen};
  };
  std::vector<Source> sources;
  for (const Replicas& replicas : found) sources.push_back(source_of(replicas));
  std::sort(sources.begin(), sources.end());

  std::vector<PlannedRead> reads;
  std::vector<Box> held;
  uint64_t missing = wanted.elements();
  for (const Source& source : sources) {
    if (missing == 0) break;
    const std::optional<Box> common = Intersect(source.shard->box, wanted);
    ESKER_CHECK(common.has_value());
    std::vector<Box> pieces = {*common};
    for (const Replicas& other : OverlappingReplicas(*common)) {
      const Source before = source_of(other);
      if (!(before < source)) continue;
      std::vector<Box> rest;
      for (const Box& piece : pieces) {
        for (Box& box : Subtract(piece, before.shard->box)) rest.push_back(std::move(box));
      }
      pieces = std::move(rest);
    }
    for (Box& piece : pieces) {
      missing -= piece.elements();
      held.push_back(piece);
      reads.push_back({std::move(piece), source.shard});
    }
  }
  if (missing == 0) return reads;
  return absl::DataLossError(StrCat("no stored shard holds ", FindHole(wanted, std::move(held)).ToString(),
                                    " of ", wanted.ToString(), " (", missing, " of ", wanted.elements(),
                                    " elements are missing)"));
}

absl::Status ShardIndex::Add(uint32_t rank, const v1::Layout& layout) {
  for (const v1::Shard& shard : layout.shards()) {
    const auto dtype = static_cast<DType>(shard.dtype());
    std::vector<uint64_t> shape(shard.shape().begin(), shard.shape().end());
    auto [entry, is_new] = pending_.try_emplace(shard.name());
    Pending& tensor = entry->second;
    if (is_new) {
      tensor.dtype = dtype;
      tensor.shape = std::move(shape);
      tensor.first_rank = rank;
    } else if (tensor.dtype != dtype || tensor.shape != shape) {
      return absl::DataLossError(StrCat("tensor \"", Printable(shard.name()), "\": rank ", tensor.first_rank,
                                        " says ", DTypeName(tensor.dtype), " of shape [",
                                        absl::StrJoin(tensor.shape, ", "), "], rank ", rank, " says ",
                                        DTypeName(dtype), " of shape [", absl::StrJoin(shape, ", "), "]"));
    }
    StoredShard stored;
    stored.box.offset.assign(shard.offset().begin(), shard.offset().end());
    stored.box.extent.assign(shard.extent().begin(), shard.extent().end());
    stored.rank = rank;
    stored.part_offset = shard.part_offset();
    tensor.shards.push_back(std::move(stored));
  }
  return absl::OkStatus();
}

void ShardIndex::Finish() {
  tensors_.reserve(pending_.size());
  for (auto& [name, tensor] : pending_) {
    tensors_.try_emplace(name, tensor.dtype, std::move(tensor.shape), std::move(tensor.shards));
  }
  pending_.clear();
}

const TensorShards* ShardIndex::Find(std::string_view name) const {
  const auto entry = tensors_.find(ToAbsl(name));
  return entry == tensors_.end() ? nullptr : &entry->second;
}

std::vector<std::string> ShardIndex::TensorNames() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace esker
