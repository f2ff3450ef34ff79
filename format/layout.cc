#include "format/layout.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

constexpr uint64_t kLargestElementBytes = 16;
constexpr uint64_t kMaxPartBytes = (uint64_t{1} << 63) - 1;

using SpecPointers = std::span<const ShardSpec*>;

std::string Describe(const ShardSpec& spec) {
  return StrCat("tensor \"", Printable(spec.name), "\", box ", spec.box.ToString());
}

absl::Status InvalidLayout(std::string_view what) {
  return absl::InvalidArgumentError(StrCat("layout: ", what));
}

// The first pair in the group, if there is one, whose boxes share an element; swept along dimension 0.
absl::Status FindOverlapBySweep(SpecPointers group) {
  std::sort(group.begin(), group.end(),
            [](const ShardSpec* a, const ShardSpec* b) { return a->box.offset < b->box.offset; });
  std::vector<const ShardSpec*> open;
  for (const ShardSpec* spec : group) {
    if (spec->box.rank() > 0) {
      std::erase_if(open, [&](const ShardSpec* other) {
        return other->box.offset[0] + other->box.extent[0] <= spec->box.offset[0];
      });
    }
    for (const ShardSpec* other : open) {
      if (Intersect(spec->box, other->box).has_value()) {
        return InvalidLayout(StrCat(Describe(*spec), ": overlaps this rank's box ", other->box.ToString(),
                                    " of the same tensor; each element is saved once a rank"));
      }
    }
    open.push_back(spec);
  }
  return absl::OkStatus();
}

// Divides the boxes of one tensor where no box crosses a plane, dimension after dimension, until it can't be
// divided. Boxes that were divided can't overlap, so a grid of n costs n·log n; only what is interlocked is
// compared in pairs. `undivided` counts the dimensions tried in vain since the group was last divided.
absl::Status CheckDisjoint(SpecPointers group, size_t dimension, size_t undivided) {
  if (group.size() < 2) return absl::OkStatus();
  const size_t dimensions = group[0]->box.rank();
  if (undivided == dimensions) return FindOverlapBySweep(group);
  std::sort(group.begin(), group.end(), [&](const ShardSpec* a, const ShardSpec* b) {
    return a->box.offset[dimension] < b->box.offset[dimension];
  });
  size_t first = 0;
  uint64_t end = 0;
  for (size_t i = 0; i <= group.size(); ++i) {
    if (i > first && (i == group.size() || group[i]->box.offset[dimension] >= end)) {
      const size_t count = i - first;
      ESKER_RETURN_IF_ERROR(CheckDisjoint(group.subspan(first, count), (dimension + 1) % dimensions,
                                          count == group.size() ? undivided + 1 : 1));
      first = i;
    }
    if (i < group.size())
      end = std::max(end, group[i]->box.offset[dimension] + group[i]->box.extent[dimension]);
  }
  return absl::OkStatus();
}

// Checks the specs one by one, then each tensor's together. `sorted` is by (name, offset).
absl::Status CheckSpecs(std::vector<const ShardSpec*> sorted) {
  for (const ShardSpec* spec : sorted) {
    ESKER_RETURN_IF_ERROR(ValidateTensorName(spec->name));
    ESKER_RETURN_IF_ERROR(Annotate(ValidateBox(spec->box, spec->shape, ElementBytes(spec->dtype)),
                                   StrCat("tensor \"", Printable(spec->name), "\"")));
  }
  size_t first = 0;
  for (size_t i = 1; i <= sorted.size(); ++i) {
    if (i < sorted.size() && sorted[i]->name == sorted[first]->name) {
      const ShardSpec& one = *sorted[first];
      const ShardSpec& other = *sorted[i];
      if (one.dtype != other.dtype || one.shape != other.shape) {
        return InvalidLayout(
            StrCat("tensor \"", Printable(one.name), "\": two of its shards have different dtypes (",
                   DTypeName(one.dtype), ", ", DTypeName(other.dtype), ") or shapes (",
                   WholeBox(one.shape).ToString(), ", ", WholeBox(other.shape).ToString(), ")"));
      }
      if (sorted[i - 1]->box.offset == other.box.offset) {
        return InvalidLayout(StrCat(Describe(other), ": a shard with this name and offset was given twice"));
      }
      continue;
    }
    std::vector<const ShardSpec*> boxes(sorted.begin() + first, sorted.begin() + i);
    std::erase_if(boxes, [](const ShardSpec* spec) { return spec->box.empty(); });
    ESKER_RETURN_IF_ERROR(CheckDisjoint(boxes, 0, 0));
    first = i;
  }
  return absl::OkStatus();
}

// Cuts the tensor bytes of a layout into chunks as shards are appended.
class ChunkCutter {
 public:
  ChunkCutter(uint64_t chunk_bytes, v1::Layout* layout) : chunk_bytes_(chunk_bytes), layout_(layout) {}

  // Returns where the shard's bytes begin.
  uint64_t Append(DType dtype, uint64_t bytes) {
    // Whole elements only: a codec may treat the bytes of an element differently.
    const uint64_t limit = chunk_bytes_ / ElementBytes(dtype) * ElementBytes(dtype);
    const bool large = bytes >= chunk_bytes_;
    if (dtype != dtype_ || large || after_large_) CloseChunk();
    dtype_ = dtype;
    after_large_ = large;
    const uint64_t begin = part_bytes_;
    part_bytes_ += bytes;
    while (bytes > 0) {
      const uint64_t taken = std::min(bytes, limit - open_bytes_);
      open_bytes_ += taken;
      bytes -= taken;
      if (open_bytes_ == limit) CloseChunk();
    }
    return begin;
  }

  void CloseChunk() {
    if (open_bytes_ == 0) return;
    layout_->add_chunk_raw_bytes(open_bytes_);
    layout_->add_chunk_dtype(static_cast<uint32_t>(dtype_));
    open_bytes_ = 0;
  }

 private:
  const uint64_t chunk_bytes_;
  v1::Layout* const layout_;
  DType dtype_ = DType::kBytes;
  bool after_large_ = false;
  uint64_t open_bytes_ = 0;  // of the chunk that is being filled
  uint64_t part_bytes_ = 0;
};

// Where each shard's bytes begin, and the chunks. Large shards come first in each dtype: they take chunks of
// their own, and the small ones would otherwise be a chunk each, wherever they stand between large ones.
std::vector<uint64_t> CutChunks(const std::vector<const ShardSpec*>& sorted, uint64_t chunk_bytes,
                                v1::Layout* layout) {
  std::vector<size_t> order(sorted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto key = [&](size_t i) { return std::pair(sorted[i]->dtype, sorted[i]->bytes() < chunk_bytes); };
    return key(a) < key(b);
  });
  std::vector<uint64_t> part_offsets(sorted.size(), 0);
  ChunkCutter cutter(chunk_bytes, layout);
  for (const size_t i : order) {
    const uint64_t bytes = sorted[i]->bytes();
    if (bytes == 0) continue;
    part_offsets[i] = cutter.Append(sorted[i]->dtype, bytes);
  }
  cutter.CloseChunk();
  return part_offsets;
}

absl::Status AddItemNames(const std::vector<std::string>& item_names, v1::Layout* layout) {
  std::vector<std::string> sorted = item_names;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) {
    ESKER_RETURN_IF_ERROR(ValidateTensorName(sorted[i]));
    if (i > 0 && sorted[i] == sorted[i - 1]) {
      return InvalidLayout(StrCat("item \"", Printable(sorted[i]), "\": given twice"));
    }
    layout->add_item_names(sorted[i]);
  }
  return absl::OkStatus();
}

// Where a layout's chunks begin, with their end at last. Fails on a chunk that can't be.
absl::StatusOr<std::vector<uint64_t>> CheckChunks(const v1::Layout& layout) {
  if (layout.chunk_raw_bytes_size() != layout.chunk_dtype_size()) {
    return InvalidLayout(StrCat(layout.chunk_raw_bytes_size(), " chunk lengths, but ",
                                layout.chunk_dtype_size(), " chunk dtypes"));
  }
  if (static_cast<uint64_t>(layout.chunk_raw_bytes_size()) > kMaxPartChunks) {
    return InvalidLayout(
        StrCat("expected at most ", kMaxPartChunks, " chunks, found ", layout.chunk_raw_bytes_size()));
  }
  std::vector<uint64_t> begins = {0};
  begins.reserve(layout.chunk_raw_bytes_size() + 1);
  for (int i = 0; i < layout.chunk_raw_bytes_size(); ++i) {
    const std::optional<DType> dtype = DTypeFromNumber(layout.chunk_dtype(i));
    if (!dtype.has_value()) {
      return InvalidLayout(
          StrCat("chunk ", i, ": dtype number ", layout.chunk_dtype(i), " is not in this version's table"));
    }
    const uint64_t bytes = layout.chunk_raw_bytes(i);
    if (bytes == 0 || bytes > kMaxChunkBytes || bytes % ElementBytes(*dtype) != 0) {
      return InvalidLayout(StrCat("chunk ", i, ": expected 1 to ", kMaxChunkBytes, " raw bytes in whole ",
                                  DTypeName(*dtype), " elements, found ", bytes));
    }
    begins.push_back(begins.back() + bytes);  // at most 2^24 chunks of at most 2^22 bytes: no overflow
  }
  return begins;
}

Box BoxOf(const v1::Shard& shard) {
  return {{shard.offset().begin(), shard.offset().end()}, {shard.extent().begin(), shard.extent().end()}};
}

std::string ShardText(int index, const v1::Shard& shard) {
  return StrCat("layout: shard ", index, " (\"", Printable(shard.name()), "\")");
}

// Name, dtype, shape and box of one shard. `bytes` is set to its length.
absl::Status CheckShard(const v1::Shard& shard, uint64_t* bytes) {
  ESKER_RETURN_IF_ERROR(ValidateTensorName(shard.name()));
  const std::optional<DType> dtype = DTypeFromNumber(shard.dtype());
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(
        StrCat("dtype number ", shard.dtype(), " is not in this version's table"));
  }
  const Box box = BoxOf(shard);
  const std::vector<uint64_t> shape(shard.shape().begin(), shard.shape().end());
  ESKER_RETURN_IF_ERROR(ValidateBox(box, shape, ElementBytes(*dtype)));
  *bytes = box.elements() * ElementBytes(*dtype);
  if (*bytes == 0 && shard.part_offset() != 0) {
    return absl::InvalidArgumentError(
        StrCat("it is empty: expected the part offset 0, found ", shard.part_offset()));
  }
  return absl::OkStatus();
}

bool SameList(const google::protobuf::RepeatedField<uint64_t>& a,
              const google::protobuf::RepeatedField<uint64_t>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// That `next` may stand behind `before`.
absl::Status CheckOrder(const v1::Shard& before, const v1::Shard& next) {
  if (before.name() > next.name())
    return absl::InvalidArgumentError("expected shards in the order of their names");
  if (before.name() < next.name()) return absl::OkStatus();
  if (before.dtype() != next.dtype() || !SameList(before.shape(), next.shape())) {
    return absl::InvalidArgumentError(
        "its dtype or shape differs from the shard's before it, of the same tensor");
  }
  if (!std::lexicographical_compare(before.offset().begin(), before.offset().end(), next.offset().begin(),
                                    next.offset().end())) {
    return absl::InvalidArgumentError(
        "expected a tensor's shards in the order of their offsets, each offset once");
  }
  return absl::OkStatus();
}

struct PlacedShard {
  uint64_t begin;
  uint64_t bytes;
  int index;
};

// That the shards lie in chunks of their dtype, at whole elements, and not over each other. One
// sweep over both.
absl::Status CheckPlaces(const v1::Layout& layout, const std::vector<uint64_t>& chunk_begins,
                         std::vector<PlacedShard> placed) {
  std::sort(placed.begin(), placed.end(), [](const PlacedShard& a, const PlacedShard& b) {
    return std::tie(a.begin, a.index) < std::tie(b.begin, b.index);
  });
  const uint64_t tensor_bytes = chunk_begins.back();
  uint64_t taken_up_to = 0;
  size_t chunk = 0;
  for (const PlacedShard& shard : placed) {
    const v1::Shard& message = layout.shards(shard.index);
    const auto invalid = [&](std::string_view what) {
      return absl::InvalidArgumentError(StrCat(ShardText(shard.index, message), ": ", what));
    };
    if (shard.begin > tensor_bytes || shard.bytes > tensor_bytes - shard.begin) {
      return invalid(StrCat("its ", shard.bytes, " bytes at ", shard.begin, " are not inside the chunks' ",
                            tensor_bytes, " bytes"));
    }
    if (shard.begin < taken_up_to) {
      return invalid(StrCat("its bytes at ", shard.begin, " overlap those of another shard, which end at ",
                            taken_up_to));
    }
    taken_up_to = shard.begin + shard.bytes;
    while (chunk_begins[chunk + 1] <= shard.begin) ++chunk;
    if ((shard.begin - chunk_begins[chunk]) % ElementBytes(static_cast<DType>(message.dtype())) != 0) {
      return invalid(StrCat("it begins inside an element of chunk ", chunk));
    }
    // Steps back never: the next shard begins in the chunk where this one ends, or later.
    for (size_t c = chunk; chunk_begins[c] < taken_up_to; ++c) {
      chunk = c;
      if (layout.chunk_dtype(static_cast<int>(c)) != message.dtype()) {
        return invalid(StrCat("its dtype is ", message.dtype(), ", but that of chunk ", c,
                              ", where it lies, is ", layout.chunk_dtype(static_cast<int>(c))));
      }
      if (c + 2 == chunk_begins.size()) break;
    }
  }
  return absl::OkStatus();
}

// The sum, unless it leaves 63 bits.
template <typename Numbers>
std::optional<uint64_t> CheckedSum(const Numbers& numbers) {
  uint64_t sum = 0;
  for (const uint64_t number : numbers) {
    if (number > kMaxPartBytes - sum) return std::nullopt;
    sum += number;
  }
  return sum;
}

}  // namespace

absl::StatusOr<v1::Layout> BuildLayout(const std::vector<ShardSpec>& shards,
                                       const std::vector<std::string>& item_names, uint64_t chunk_bytes) {
  if (chunk_bytes < kLargestElementBytes || chunk_bytes > kMaxChunkBytes) {
    return InvalidLayout(StrCat("expected chunks of ", kLargestElementBytes, " to ", kMaxChunkBytes,
                                " bytes, found ", chunk_bytes));
  }
  std::vector<const ShardSpec*> sorted;
  sorted.reserve(shards.size());
  for (const ShardSpec& spec : shards) sorted.push_back(&spec);
  std::sort(sorted.begin(), sorted.end(), [](const ShardSpec* a, const ShardSpec* b) {
    return std::tie(a->name, a->box.offset) < std::tie(b->name, b->box.offset);
  });
  ESKER_RETURN_IF_ERROR(CheckSpecs(sorted));
  std::vector<uint64_t> sizes;
  for (const ShardSpec* spec : sorted) sizes.push_back(spec->bytes());
  const std::optional<uint64_t> total = CheckedSum(sizes);
  // Each shard may leave a last chunk half full.
  if (!total.has_value() || *total / chunk_bytes + sizes.size() > kMaxPartChunks) {
    return InvalidLayout(StrCat("its ", sizes.size(), " shards would take more than ", kMaxPartChunks,
                                " chunks of ", chunk_bytes, " bytes: spread them over more ranks"));
  }

  v1::Layout layout;
  const std::vector<uint64_t> part_offsets = CutChunks(sorted, chunk_bytes, &layout);
  for (size_t i = 0; i < sorted.size(); ++i) {
    v1::Shard* shard = layout.add_shards();
    shard->set_name(sorted[i]->name);
    shard->set_dtype(static_cast<uint32_t>(sorted[i]->dtype));
    shard->mutable_shape()->Add(sorted[i]->shape.begin(), sorted[i]->shape.end());
    shard->mutable_offset()->Add(sorted[i]->box.offset.begin(), sorted[i]->box.offset.end());
    shard->mutable_extent()->Add(sorted[i]->box.extent.begin(), sorted[i]->box.extent.end());
    shard->set_part_offset(part_offsets[i]);
  }
  ESKER_RETURN_IF_ERROR(AddItemNames(item_names, &layout));
  return layout;
}

absl::Status ValidateLayout(const v1::Layout& layout) {
  ESKER_ASSIGN_OR_RETURN(const std::vector<uint64_t> chunk_begins, CheckChunks(layout));
  std::vector<PlacedShard> placed;
  for (int i = 0; i < layout.shards_size(); ++i) {
    const v1::Shard& shard = layout.shards(i);
    uint64_t bytes = 0;
    ESKER_RETURN_IF_ERROR(Annotate(CheckShard(shard, &bytes), ShardText(i, shard)));
    if (i > 0) ESKER_RETURN_IF_ERROR(Annotate(CheckOrder(layout.shards(i - 1), shard), ShardText(i, shard)));
    if (bytes > 0) placed.push_back({shard.part_offset(), bytes, i});
  }
  ESKER_RETURN_IF_ERROR(CheckPlaces(layout, chunk_begins, std::move(placed)));
  for (int i = 0; i < layout.item_names_size(); ++i) {
    ESKER_RETURN_IF_ERROR(Annotate(ValidateTensorName(layout.item_names(i)), StrCat("layout: item ", i)));
    if (i > 0 && layout.item_names(i - 1) >= layout.item_names(i)) {
      return InvalidLayout(StrCat("item ", i, " (\"", Printable(layout.item_names(i)),
                                  "\"): expected items in the order of their names, each once"));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidatePart(const v1::Part& part, const v1::Layout& layout) {
  const auto invalid = [](std::string_view what) {
    return absl::InvalidArgumentError(StrCat("part: ", what));
  };
  ESKER_RETURN_IF_ERROR(HashFromBytes(part.layout_digest(), "part: layout_digest").status());
  if (part.item_bytes_size() != layout.item_names_size()) {
    return invalid(StrCat("expected the lengths of the layout's ", layout.item_names_size(), " items, found ",
                          part.item_bytes_size()));
  }
  for (int i = 0; i < part.item_chunk_raw_bytes_size(); ++i) {
    const uint64_t bytes = part.item_chunk_raw_bytes(i);
    if (bytes == 0 || bytes > kMaxChunkBytes) {
      return invalid(
          StrCat("item chunk ", i, ": expected 1 to ", kMaxChunkBytes, " raw bytes, found ", bytes));
    }
  }
  const std::optional<uint64_t> tensor_bytes = CheckedSum(layout.chunk_raw_bytes());
  const std::optional<uint64_t> item_bytes = CheckedSum(part.item_bytes());
  const std::optional<uint64_t> item_chunk_bytes = CheckedSum(part.item_chunk_raw_bytes());
  if (!tensor_bytes.has_value() || !item_bytes.has_value() || item_bytes != item_chunk_bytes) {
    return invalid(StrCat("its items have ", item_bytes.has_value() ? StrCat(*item_bytes) : "2^63 or more",
                          " bytes, but its item chunks ", item_chunk_bytes.value_or(0)));
  }
  const std::optional<uint64_t> raw_bytes = CheckedSum(std::array{*tensor_bytes, *item_bytes});
  if (raw_bytes != part.raw_bytes()) {
    return invalid(StrCat("it says ", part.raw_bytes(), " raw bytes, but its chunks have ", *tensor_bytes,
                          " of tensors and ", *item_bytes, " of items"));
  }
  const uint64_t chunks =
      static_cast<uint64_t>(layout.chunk_raw_bytes_size()) + part.item_chunk_raw_bytes_size();
  if (chunks > kMaxPartChunks) {
    return invalid(StrCat("expected at most ", kMaxPartChunks, " chunks, found ", chunks));
  }
  if (part.chunk_hashes().size() != chunks * sizeof(Hash128)) {
    return invalid(StrCat("expected ", chunks, " chunk hashes of ", sizeof(Hash128), " bytes, found ",
                          part.chunk_hashes().size(), " bytes"));
  }
  return absl::OkStatus();
}

std::vector<uint64_t> CutItemChunks(uint64_t total, uint64_t chunk_bytes) {
  ESKER_CHECK(chunk_bytes > 0 && chunk_bytes <= kMaxChunkBytes);
  std::vector<uint64_t> pieces(total / chunk_bytes, chunk_bytes);
  if (total % chunk_bytes != 0) pieces.push_back(total % chunk_bytes);
  return pieces;
}

PartMap::PartMap(const v1::Part& part, const v1::Layout& layout) {
  const int tensor_chunks = layout.chunk_raw_bytes_size();
  const int count = tensor_chunks + part.item_chunk_raw_bytes_size();
  chunks_.reserve(count);
  uint64_t part_offset = 0;
  for (int i = 0; i < count; ++i) {
    PartChunk chunk;
    std::memcpy(chunk.hash.bytes.data(), part.chunk_hashes().data() + i * sizeof(Hash128), sizeof(Hash128));
    if (i < tensor_chunks) chunk.dtype = static_cast<DType>(layout.chunk_dtype(i));
    chunk.part_offset = part_offset;
    chunk.raw_bytes =
        i < tensor_chunks ? layout.chunk_raw_bytes(i) : part.item_chunk_raw_bytes(i - tensor_chunks);
    part_offset += chunk.raw_bytes;
    chunks_.push_back(chunk);
  }
  uint64_t item_offset =
      tensor_chunks == 0 ? 0 : chunks_[tensor_chunks - 1].part_offset + chunks_[tensor_chunks - 1].raw_bytes;
  for (int i = 0; i < layout.item_names_size(); ++i) {
    items_.push_back({layout.item_names(i), item_offset, part.item_bytes(i)});
    item_offset += part.item_bytes(i);
  }
}

size_t PartMap::ChunkAt(uint64_t part_offset) const {
  ESKER_CHECK(!chunks_.empty() && part_offset < chunks_.back().part_offset + chunks_.back().raw_bytes);
  const auto behind =
      std::upper_bound(chunks_.begin(), chunks_.end(), part_offset,
                       [](uint64_t at, const PartChunk& chunk) { return at < chunk.part_offset; });
  return static_cast<size_t>(behind - chunks_.begin()) - 1;
}

}  // namespace esker
