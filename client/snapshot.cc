#include "client/snapshot.h"

#include <algorithm>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "client/connection.h"
#include "client/delta_history.h"
#include "client/parallel.h"
#include "client/state_types.h"
#include "format/base/mutex.h"
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
// Room for the rest of an ArenaSave beside layout and lengths.
constexpr uint64_t kArenaSaveOverheadBytes = 4 << 10;
constexpr uint64_t kMaxVarintBytes = 10;
// Small tensors share chunks with others of their dtype.
constexpr uint64_t kMostDTypes = 32;
// For a layout of some ten thousand shards; a larger one makes the first save allocate.
constexpr uint64_t kLayoutRoomBytes = 4 << 20;

struct Copy {
  const std::byte* from;
  std::byte* to;
  uint64_t bytes;
  size_t chunk;  // that it is for
};

// Indices by what stands there.
std::vector<size_t> OrderOf(const std::vector<uint64_t>& offsets) {
  std::vector<size_t> order(offsets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  return order;
}

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

// Appends the copies of `bytes` bytes that lie at `part_offset` in the part: one for each chunk that takes
// some.
void AddCopies(const Snapshot& snapshot, const void* from, uint64_t part_offset, uint64_t bytes,
               std::vector<Copy>* copies) {
  if (bytes == 0) return;
  const auto* source = static_cast<const std::byte*>(from);
  const auto begins_behind = [](uint64_t offset, const SnapshotChunk& chunk) {
    return offset < chunk.part_offset;
  };
  auto chunk =
      std::prev(std::upper_bound(snapshot.chunks.begin(), snapshot.chunks.end(), part_offset, begins_behind));
  while (bytes > 0) {
    const uint64_t skipped = part_offset - chunk->part_offset;
    const uint64_t taken = std::min(bytes, chunk->bytes - skipped);
    const auto index = static_cast<size_t>(chunk - snapshot.chunks.begin());
    copies->push_back({source, snapshot.block->data() + chunk->block_offset() + skipped, taken, index});
    source += taken;
    part_offset += taken;
    bytes -= taken;
    ++chunk;
  }
}

// In the order of the part.
std::vector<Copy> ListCopies(const State& state, const Snapshot& snapshot) {
  std::vector<Copy> copies;
  const LayoutPlan& plan = *snapshot.plan;
  for (const size_t i : plan.tensor_order) {
    AddCopies(snapshot, state.tensors[i].data, plan.tensor_offsets[i], state.tensors[i].box.bytes(), &copies);
  }
  uint64_t item_offset = plan.tensor_bytes;
  for (const size_t i : plan.item_order) {
    const std::string_view bytes = state.items[i].bytes;
    AddCopies(snapshot, bytes.data(), item_offset, bytes.size(), &copies);
    item_offset += bytes.size();
  }
  return copies;
}

void AppendChunk(uint64_t bytes, DType dtype, std::vector<SnapshotChunk>* chunks) {
  SnapshotChunk chunk{.bytes = bytes, .dtype = dtype};
  if (!chunks->empty()) {
    chunk.part_offset = chunks->back().part_offset + chunks->back().bytes;
    chunk.record_offset = chunks->back().record_end();
  }
  chunks->push_back(chunk);
}

uint64_t ArenaSaveBytes(const Snapshot& snapshot) {
  const uint64_t lengths = snapshot.item_bytes.size() + snapshot.item_chunk_raw_bytes.size();
  return snapshot.plan->envelope.size() + lengths * kMaxVarintBytes + kArenaSaveOverheadBytes;
}

// Copies of neighbours are joined into jobs of about kCopyBytes, so that 10,000 small tensors aren't 10,000
// jobs. The result is where each job begins.
std::vector<size_t> CutIntoJobs(const std::vector<Copy>& copies) {
  std::vector<size_t> begins;
  uint64_t job_bytes = kCopyBytes;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (job_bytes >= kCopyBytes) {
      begins.push_back(i);
      job_bytes = 0;
    }
    job_bytes += copies[i].bytes;
  }
  return begins;
}

// Which jobs are done, all of the first ones without a gap: jobs end in about the order in which they begin.
class DoneJobs {
 public:
  // `report` is called, under a lock, with how many first jobs are done: when it is `step` more, or all.
  DoneJobs(size_t jobs, size_t step, std::function<void(size_t)> report)
      : step_(step), report_(std::move(report)), done_(jobs, false) {}

  void Add(size_t job) {
    MutexLock lock(&mu_);
    done_[job] = true;
    while (first_ < done_.size() && done_[first_]) ++first_;
    if (first_ < reported_ + step_ && first_ < done_.size()) return;
    if (first_ == reported_) return;
    reported_ = first_;
    report_(first_);
  }

 private:
  const size_t step_;
  const std::function<void(size_t)> report_;

  Mutex mu_;
  std::vector<bool> done_ ABSL_GUARDED_BY(mu_);
  size_t first_ ABSL_GUARDED_BY(mu_) = 0;     // the first that is not done
  size_t reported_ ABSL_GUARDED_BY(mu_) = 0;  // as it was reported last
};

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
    AppendChunk(layout.chunk_raw_bytes(i), static_cast<DType>(layout.chunk_dtype(i)), &plan->chunks);
    plan->tensor_bytes += layout.chunk_raw_bytes(i);
  }
  plan->tensor_offsets = FindTensorOffsets(state, layout);
  plan->tensor_order = OrderOf(plan->tensor_offsets);
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

uint64_t StagingBytesFor(uint64_t raw_bytes, uint64_t chunk_bytes) {
  // A tensor's last chunk may be nearly empty.
  const uint64_t most_chunks = 2 * (raw_bytes / chunk_bytes) + kMostDTypes;
  return raw_bytes + most_chunks * 2 * kRecordAlignment + kLayoutRoomBytes;
}

absl::StatusOr<Snapshot> PrepareSnapshot(const State& state, std::shared_ptr<const LayoutPlan> plan,
                                         StagingArena* arena, const DeltaHistory* deltas) {
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
    AppendChunk(bytes, DType::kBytes, &snapshot.chunks);
    snapshot.raw_bytes += bytes;
  }
  ESKER_RETURN_IF_ERROR(CheckSealFits(snapshot));
  const uint64_t bytes = snapshot.records_end() + ArenaSaveBytes(snapshot);
  if (deltas == nullptr) {
    ESKER_ASSIGN_OR_RETURN(snapshot.block, arena->Acquire(bytes));
  } else {
    ESKER_ASSIGN_OR_RETURN(snapshot.block, arena->Acquire(DeltaHistory::BlockBytesFor(bytes)));
    deltas->Place(&snapshot);
  }
  return snapshot;
}

void CopyState(const State& state, const Snapshot& snapshot, ThreadPool* pool,
               const std::function<void(size_t)>& ready) {
  const std::vector<Copy> copies = ListCopies(state, snapshot);
  const std::vector<size_t> begins = CutIntoJobs(copies);
  DoneJobs done(begins.size(), begins.size() / kReadySteps + 1, [&](size_t jobs) {
    // Of the chunk that the next job begins with there may be more to come.
    ready(jobs < begins.size() ? copies[begins[jobs]].chunk : snapshot.chunks.size());
  });
  ParallelFor(pool, begins.size(), [&](size_t job) {
    const size_t end = job + 1 < begins.size() ? begins[job + 1] : copies.size();
    for (size_t i = begins[job]; i < end; ++i) StreamingCopy(copies[i].to, copies[i].from, copies[i].bytes);
    done.Add(job);
  });
  if (begins.empty()) ready(0);
}

}  // namespace esker
