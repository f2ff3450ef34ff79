#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "client/checkpoint_access.h"
#include "client/checkpoint_reader_impl.h"
#include "client/chunk_fetcher.h"
#include "client/memory_limit.h"
#include "client/state_types.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

constexpr size_t kMostSuggestions = 3;

// How many characters two names share at their beginning and end.
size_t Likeness(const std::string& a, const std::string& b) {
  const size_t most = std::min(a.size(), b.size());
  size_t front = 0;
  while (front < most && a[front] == b[front]) ++front;
  size_t back = 0;
  while (back < most - front && a[a.size() - 1 - back] == b[b.size() - 1 - back]) ++back;
  return front + back;
}

std::string TensorText(DType dtype, const std::vector<uint64_t>& shape) {
  return StrCat(DTypeName(dtype), " of shape [", absl::StrJoin(shape, ", "), "]");
}

// The wanted boxes, checked for themselves.
absl::StatusOr<RestoreTarget> ToTarget(const TargetTensor& tensor) {
  ESKER_ASSIGN_OR_RETURN(const DType dtype, CheckTensorBox(tensor.box));
  RestoreTarget target;
  target.label = StrCat("tensor \"", Printable(tensor.box.name), "\"");
  target.box = BoxOf(tensor.box);
  target.element_bytes = ElementBytes(dtype);
  target.data = static_cast<std::byte*>(tensor.data);
  if (tensor.data == nullptr && target.bytes() > 0) {
    return absl::InvalidArgumentError(
        StrCat(target.label, ": expected room for ", target.bytes(), " bytes, found a null pointer"));
  }
  return target;
}

}  // namespace

CheckpointReader::Impl::Impl(std::shared_ptr<Connection> connection, std::unique_ptr<ReadLease> lease,
                             std::unique_ptr<CheckpointMetadata> metadata, uint64_t timeout_ms, int threads,
                             Transport transport)
    : connection_(std::move(connection)),
      lease_(std::move(lease)),
      metadata_(std::move(metadata)),
      timeout_ms_(timeout_ms),
      threads_(threads),
      transport_(transport),
      info_(ToInfo(metadata_->record())) {}

std::vector<uint32_t> CheckpointReader::Impl::AllRanks() const {
  std::vector<uint32_t> ranks(info_.world_size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

absl::StatusOr<CheckpointReader::Impl::Index> CheckpointReader::Impl::MakeIndex(
    const std::vector<uint32_t>& ranks) {
  ESKER_ASSIGN_OR_RETURN(const auto layouts, metadata_->Layouts(ranks));
  auto index = std::make_shared<ShardIndex>();
  for (size_t i = 0; i < ranks.size(); ++i) {
    ESKER_RETURN_IF_ERROR(Annotate(index->Add(ranks[i], *layouts[i]), metadata_->label()));
  }
  index->Finish();
  return Index(std::move(index));
}

absl::StatusOr<CheckpointReader::Impl::Index> CheckpointReader::Impl::RankIndex(uint32_t rank) {
  MutexLock lock(&mu_);
  if (rank_index_ == nullptr || indexed_rank_ != rank) {
    ESKER_ASSIGN_OR_RETURN(rank_index_, MakeIndex({rank}));
    indexed_rank_ = rank;
  }
  return rank_index_;
}

absl::StatusOr<CheckpointReader::Impl::Index> CheckpointReader::Impl::FullIndex() {
  MutexLock lock(&mu_);
  if (full_index_ == nullptr) {
    ESKER_ASSIGN_OR_RETURN(full_index_, MakeIndex(AllRanks()));
  }
  return full_index_;
}

absl::StatusOr<std::vector<TensorInfo>> CheckpointReader::Impl::Tensors() {
  ESKER_ASSIGN_OR_RETURN(const Index index, FullIndex());
  std::vector<TensorInfo> tensors;
  for (std::string& name : index->TensorNames()) {
    const TensorShards& shards = *index->Find(name);
    TensorInfo tensor;
    tensor.type = ToElementType(shards.dtype());
    tensor.shape = shards.shape();
    tensor.shards = static_cast<uint32_t>(shards.shards().size());
    tensor.name = std::move(name);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

absl::StatusOr<std::vector<TensorBox>> CheckpointReader::Impl::StoredBy(uint32_t rank) {
  ESKER_ASSIGN_OR_RETURN(const auto layouts, metadata_->Layouts({rank}));
  std::vector<TensorBox> boxes;
  for (const v1::Shard& shard : layouts[0]->shards()) {
    TensorBox box;
    box.name = shard.name();
    box.type = ToElementType(static_cast<DType>(shard.dtype()));
    box.shape.assign(shard.shape().begin(), shard.shape().end());
    box.offset.assign(shard.offset().begin(), shard.offset().end());
    box.extent.assign(shard.extent().begin(), shard.extent().end());
    boxes.push_back(std::move(box));
  }
  return boxes;
}

absl::StatusOr<std::vector<ItemInfo>> CheckpointReader::Impl::Items() {
  ESKER_ASSIGN_OR_RETURN(const auto parts, metadata_->Parts(AllRanks()));
  std::vector<ItemInfo> items;
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    for (const PartMap::Item& item : parts[rank]->items()) {
      items.push_back({static_cast<uint32_t>(rank), item.name, item.bytes});
    }
  }
  return items;
}

absl::Status CheckpointReader::Impl::NoSuchTensor(const ShardIndex& index, const std::string& name) const {
  std::vector<std::string> names = index.TensorNames();
  const size_t count = names.size();
  const size_t shown = std::min(kMostSuggestions, count);
  std::partial_sort(
      names.begin(), names.begin() + static_cast<ptrdiff_t>(shown), names.end(),
      [&](const std::string& a, const std::string& b) { return Likeness(a, name) > Likeness(b, name); });
  names.resize(shown);
  for (std::string& near : names) near = StrCat("\"", Printable(near), "\"");
  return absl::NotFoundError(
      StrCat(metadata_->label(), ": it has no tensor \"", Printable(name), "\"; it has ", count,
             shown == 0 ? "" : StrCat(", of which the nearest are ", absl::StrJoin(names, ", "))));
}

absl::StatusOr<std::vector<CheckpointReader::Impl::Piece>> CheckpointReader::Impl::Plan(
    const ShardIndex& index, const RestoreRequest& request) const {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < request.tensors.size(); ++i) {
    const TensorBox& wanted = request.tensors[i].box;
    const TensorShards* stored = index.Find(wanted.name);
    if (stored == nullptr) return NoSuchTensor(index, wanted.name);
    const DType dtype = *ToDType(wanted.type);
    if (stored->dtype() != dtype || stored->shape() != wanted.shape) {
      return absl::InvalidArgumentError(StrCat(metadata_->label(), ": tensor \"", Printable(wanted.name),
                                               "\": wanted is ", TensorText(dtype, wanted.shape),
                                               ", stored is ", TensorText(stored->dtype(), stored->shape())));
    }
    absl::StatusOr<std::vector<PlannedRead>> reads = stored->Plan(BoxOf(wanted), request.preferred_rank);
    if (!reads.ok()) {
      return Annotate(reads.status(),
                      StrCat(metadata_->label(), ": tensor \"", Printable(wanted.name), "\""));
    }
    for (PlannedRead& read : *reads) pieces.push_back({i, std::move(read)});
  }
  return pieces;
}

absl::Status CheckpointReader::Impl::Restore(const RestoreRequest& request) {
  RestorePlan plan;
  for (const TargetTensor& tensor : request.tensors) {
    ESKER_ASSIGN_OR_RETURN(RestoreTarget target, ToTarget(tensor));
    plan.AddTarget(std::move(target));
  }
  // Most often a rank comes back with the boxes that it saved: then its own layout is all that need be known.
  if (request.preferred_rank < info_.world_size) {
    ESKER_ASSIGN_OR_RETURN(const Index own, RankIndex(request.preferred_rank));
    const absl::StatusOr<std::vector<Piece>> pieces = Plan(*own, request);
    if (pieces.ok()) return Fetch(&plan, *pieces, request.progress);
    if (!absl::IsNotFound(pieces.status()) && !absl::IsDataLoss(pieces.status())) return pieces.status();
  }
  ESKER_ASSIGN_OR_RETURN(const Index index, FullIndex());
  ESKER_ASSIGN_OR_RETURN(const std::vector<Piece> pieces, Plan(*index, request));
  return Fetch(&plan, pieces, request.progress);
}

absl::Status CheckpointReader::Impl::Fetch(RestorePlan* plan, const std::vector<Piece>& pieces,
                                           const ProgressCallback& progress) {
  std::set<uint32_t> used;
  for (const Piece& piece : pieces) used.insert(piece.read.shard->rank);
  const std::vector<uint32_t> ranks(used.begin(), used.end());
  ESKER_ASSIGN_OR_RETURN(const auto parts, metadata_->Parts(ranks));
  for (const Piece& piece : pieces) {
    const auto at = std::lower_bound(ranks.begin(), ranks.end(), piece.read.shard->rank) - ranks.begin();
    plan->AddPiece(piece.target, piece.read.box, *piece.read.shard, *parts[static_cast<size_t>(at)]);
  }
  plan->Finish();
  FetchOptions options;
  options.threads = threads_;
  options.transport = transport_;
  options.timeout_ms = timeout_ms_;
  options.label = metadata_->label();
  options.progress = progress;
  ChunkFetcher fetcher(plan, connection_.get(), lease_.get(), options);
  const absl::Status status = fetcher.Run();
  MutexLock lock(&mu_);
  came_by_ = fetcher.transport();
  return status;
}

Transport CheckpointReader::Impl::transport() const {
  MutexLock lock(&mu_);
  return came_by_;
}

absl::StatusOr<std::string> CheckpointReader::Impl::ReadItem(uint32_t rank, const std::string& name) {
  ESKER_ASSIGN_OR_RETURN(const auto parts, metadata_->Parts({rank}));
  const std::vector<PartMap::Item>& items = parts[0]->items();
  const auto item =
      std::find_if(items.begin(), items.end(), [&](const PartMap::Item& i) { return i.name == name; });
  if (item == items.end()) {
    return absl::NotFoundError(StrCat(metadata_->label(), ", rank ", rank, ": it has no item \"",
                                      Printable(name), "\", but ", items.size(), " others"));
  }
  if (item->bytes > AvailableMemoryBytes()) {
    return absl::ResourceExhaustedError(StrCat(metadata_->label(), ", rank ", rank, ": item \"",
                                               Printable(name), "\" has ", item->bytes,
                                               " bytes, more than there is memory"));
  }
  std::string bytes(item->bytes, '\0');
  // An item is read as if it were a tensor of bytes, with one dimension.
  const Box whole = WholeBox({item->bytes});
  const StoredShard shard = {whole, rank, item->part_offset};
  RestorePlan plan;
  RestoreTarget target;
  target.label = StrCat("item \"", Printable(name), "\"");
  target.box = whole;
  target.data = reinterpret_cast<std::byte*>(bytes.data());
  const size_t number = plan.AddTarget(std::move(target));
  ESKER_RETURN_IF_ERROR(Fetch(&plan, {{number, {whole, &shard}}}, nullptr));
  return bytes;
}

CheckpointReader::CheckpointReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointReader::~CheckpointReader() = default;

const CheckpointInfo& CheckpointReader::info() const { return impl_->info(); }
absl::StatusOr<std::vector<TensorInfo>> CheckpointReader::Tensors() { return impl_->Tensors(); }
absl::StatusOr<std::vector<TensorBox>> CheckpointReader::StoredBy(uint32_t rank) {
  return impl_->StoredBy(rank);
}
absl::StatusOr<std::vector<ItemInfo>> CheckpointReader::Items() { return impl_->Items(); }
absl::Status CheckpointReader::Restore(const RestoreRequest& request) { return impl_->Restore(request); }
Transport CheckpointReader::transport() const { return impl_->transport(); }
absl::StatusOr<std::string> CheckpointReader::ReadItem(uint32_t rank, const std::string& name) {
  return impl_->ReadItem(rank, name);
}

}  // namespace esker
