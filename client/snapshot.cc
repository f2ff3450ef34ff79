#include "client/snapshot.h"

#include <algorithm>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "client/connection.h"
#include "client/parallel.h"
#include "client/state_types.h"
#include "format/base/status.h"
#include "format/base/streaming_copy.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/layout.h"
#include "format/names.h"

namespace esker {
namespace {

// A job of one thread: enough to be worth it, little enough that all threads end together.
constexpr uint64_t kCopyBytes = 4 << 20;
// Room for the rest of a SealPart message beside layout and hashes.
constexpr uint64_t kSealOverheadBytes = 64 << 10;

struct Copy {
  const std::byte* from;
  std::byte* to;
  uint64_t bytes;
};

// Where the layout put each of the state's tensors.
std::vector<uint64_t> FindTensorOffsets(const State& state, const v1::Layout& layout) {
  // The layout's shards are sorted by (name, offset); so are these, one for one.
  std::vector<size_t> order(state.tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const TensorBox& x = state.tensors[a].box;
    const TensorBox& y = state.tensors[b].box;
    return std::tie(x.name, x.offset) < std::tie(y.name, y.offset);
  });
  std::vector<uint64_t> offsets(state.tensors.size());
  for (size_t i = 0; i < order.size(); ++i) {
    ESKER_CHECK(layout.shards(static_cast<int>(i)).name() == state.tensors[order[i]].box.name);
    offsets[order[i]] = layout.shards(static_cast<int>(i)).part_offset();
  }
  return offsets;
}

std::vector<size_t> FindItemOrder(const State& state) {
  std::vector<size_t> order(state.items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return state.items[a].name < state.items[b].name; });
  return order;
}

bool SameBox(const TensorBox& a, const TensorBox& b) {
  return a.type == b.type && a.offset == b.offset && a.extent == b.extent && a.shape == b.shape &&
         a.name == b.name;
}

// What is to be copied, in pieces of at most kCopyBytes.
std::vector<Copy> ListCopies(const State& state, const LayoutPlan& plan, std::byte* base) {
  std::vector<Copy> copies;
  const auto add = [&copies](const void* from, std::byte* to, uint64_t bytes) {
    const auto* source = static_cast<const std::byte*>(from);
    for (uint64_t at = 0; at < bytes; at += kCopyBytes) {
      copies.push_back({source + at, to + at, std::min(kCopyBytes, bytes - at)});
    }
  };
  for (size_t i = 0; i < state.tensors.size(); ++i) {
    add(state.tensors[i].data, base + plan.tensor_offsets[i], state.tensors[i].box.bytes());
  }
  std::byte* item = base + plan.tensor_bytes;
  for (const size_t i : plan.item_order) {
    add(state.items[i].bytes.data(), item, state.items[i].bytes.size());
    item += state.items[i].bytes.size();
  }
  return copies;
}

// Copies of neighbours are joined into jobs of about kCopyBytes, so that 10,000 small tensors aren't 10,000
// jobs.
void CopyAll(const std::vector<Copy>& copies, ThreadPool* pool) {
  std::vector<size_t> job_begins;
  uint64_t job_bytes = kCopyBytes;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (job_bytes >= kCopyBytes) {
      job_begins.push_back(i);
      job_bytes = 0;
    }
    job_bytes += copies[i].bytes;
  }
  ParallelFor(pool, job_begins.size(), [&](size_t job) {
    const size_t end = job + 1 < job_begins.size() ? job_begins[job + 1] : copies.size();
    for (size_t i = job_begins[job]; i < end; ++i)
      StreamingCopy(copies[i].to, copies[i].from, copies[i].bytes);
  });
}

absl::Status CheckData(const State& state) {
  for (const SourceTensor& tensor : state.tensors) {
    if (tensor.data == nullptr && tensor.box.bytes() > 0) {
      return absl::InvalidArgumentError(StrCat("tensor \"", Printable(tensor.box.name), "\": expected ",
                                               tensor.box.bytes(), " bytes of data, found a null pointer"));
    }
  }
  return absl::OkStatus();
}

// A part is sealed by one message: its chunk hashes, and the layout with it.
absl::Status CheckSealFits(const Snapshot& snapshot) {
  const uint64_t layout_bytes = snapshot.plan->envelope.size();
  const uint64_t part_bytes = snapshot.chunks.size() * sizeof(Hash128) +
                              (snapshot.item_bytes.size() + snapshot.item_chunk_raw_bytes.size()) * 10;
  if (layout_bytes + part_bytes + kSealOverheadBytes <= kMaxRequestBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("the state is too large for one rank: its layout (", snapshot.plan->boxes.size(),
             " tensors) has ", layout_bytes, " bytes and its ", snapshot.chunks.size(), " chunks of ",
             snapshot.plan->chunk_bytes, " bytes need ", part_bytes, "; both together may have ",
             kMaxRequestBytes - kSealOverheadBytes, "; use larger chunks, or more ranks"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LayoutPlan>> MakeLayoutPlan(const State& state, uint64_t chunk_bytes) {
  auto plan = std::make_shared<LayoutPlan>();
  std::vector<ShardSpec> specs;
  specs.reserve(state.tensors.size());
  for (const SourceTensor& tensor : state.tensors) {
    ESKER_ASSIGN_OR_RETURN(const DType dtype, CheckTensorBox(tensor.box));
    specs.push_back({tensor.box.name, dtype, tensor.box.shape, BoxOf(tensor.box)});
    plan->boxes.push_back(tensor.box);
  }
  for (const SourceItem& item : state.items) plan->item_names.push_back(item.name);
  ESKER_ASSIGN_OR_RETURN(const v1::Layout layout, BuildLayout(specs, plan->item_names, chunk_bytes));

  plan->chunk_bytes = chunk_bytes;
  for (int i = 0; i < layout.chunk_raw_bytes_size(); ++i) {
    plan->chunks.push_back(
        {plan->tensor_bytes, layout.chunk_raw_bytes(i), static_cast<DType>(layout.chunk_dtype(i))});
    plan->tensor_bytes += layout.chunk_raw_bytes(i);
  }
  plan->tensor_offsets = FindTensorOffsets(state, layout);
  plan->item_order = FindItemOrder(state);
  plan->envelope = EncodeEnvelope(EnvelopeKind::kLayout, layout);
  plan->digest = HashOf(AsBytes(plan->envelope));
  return std::shared_ptr<const LayoutPlan>(std::move(plan));
}

bool PlanFits(const LayoutPlan& plan, const State& state) {
  return std::equal(
             plan.boxes.begin(), plan.boxes.end(), state.tensors.begin(), state.tensors.end(),
             [](const TensorBox& box, const SourceTensor& tensor) { return SameBox(box, tensor.box); }) &&
         std::equal(plan.item_names.begin(), plan.item_names.end(), state.items.begin(), state.items.end(),
                    [](const std::string& name, const SourceItem& item) { return name == item.name; });
}

absl::StatusOr<std::shared_ptr<const LayoutPlan>> LayoutCache::Get(const State& state) {
  if (plan_ == nullptr || !PlanFits(*plan_, state)) {
    ESKER_ASSIGN_OR_RETURN(plan_, MakeLayoutPlan(state, chunk_bytes_));
  }
  return plan_;
}

absl::StatusOr<Snapshot> TakeSnapshot(const State& state, std::shared_ptr<const LayoutPlan> plan,
                                      StagingArena* arena, ThreadPool* pool) {
  ESKER_RETURN_IF_ERROR(CheckData(state));
  Snapshot snapshot;
  snapshot.plan = std::move(plan);
  snapshot.chunks = snapshot.plan->chunks;
  snapshot.raw_bytes = snapshot.plan->tensor_bytes;
  for (const size_t i : snapshot.plan->item_order) snapshot.item_bytes.push_back(state.items[i].bytes.size());
  const uint64_t item_bytes =
      std::accumulate(snapshot.item_bytes.begin(), snapshot.item_bytes.end(), uint64_t{0});
  snapshot.item_chunk_raw_bytes = CutItemChunks(item_bytes, snapshot.plan->chunk_bytes);
  for (const uint64_t bytes : snapshot.item_chunk_raw_bytes) {
    snapshot.chunks.push_back({snapshot.raw_bytes, bytes, DType::kBytes});
    snapshot.raw_bytes += bytes;
  }
  ESKER_RETURN_IF_ERROR(CheckSealFits(snapshot));
  ESKER_ASSIGN_OR_RETURN(snapshot.block, arena->Acquire(snapshot.raw_bytes));
  CopyAll(ListCopies(state, *snapshot.plan, snapshot.block->data()), pool);
  return snapshot;
}

}  // namespace esker
