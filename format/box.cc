#include "format/box.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

// One loop of ForEachRun around its runs: how often, and how far apart in both.
struct Loop {
  uint64_t count;
  uint64_t source_stride;
  uint64_t target_stride;
};

uint64_t End(const Box& box, size_t d) { return box.offset[d] + box.extent[d]; }

// kInvalidArgument if the tensor has more dimensions or bytes than can be.
absl::Status CheckShape(const std::vector<uint64_t>& shape, uint64_t element_bytes) {
  if (shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(
        StrCat("a tensor of ", shape.size(), " dimensions: at most ", kMaxDimensions, " are possible"));
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return absl::OkStatus();
  uint64_t bytes = element_bytes;
  for (const uint64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes >> 63 != 0) {
      return absl::InvalidArgumentError(StrCat("a tensor of shape [", absl::StrJoin(shape, ", "), "] with ",
                                               element_bytes,
                                               " bytes an element: expected less than 2^63 bytes"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t Box::elements() const {
  uint64_t count = 1;
  for (const uint64_t e : extent) count *= e;
  return count;
}

std::string Box::ToString() const {
  std::string text = "[";
  for (size_t d = 0; d < rank(); ++d) {
    absl::StrAppend(&text, d == 0 ? "" : ", ", offset[d], ":", End(*this, d));
  }
  return text + "]";
}

Box WholeBox(const std::vector<uint64_t>& shape) { return {std::vector<uint64_t>(shape.size(), 0), shape}; }

absl::Status ValidateBox(const Box& box, const std::vector<uint64_t>& shape, uint64_t element_bytes) {
  ESKER_RETURN_IF_ERROR(CheckShape(shape, element_bytes));
  if (box.offset.size() != shape.size() || box.extent.size() != shape.size()) {
    return absl::InvalidArgumentError(StrCat("a box of ", box.offset.size(), " offsets and ",
                                             box.extent.size(), " extents: the tensor has ", shape.size(),
                                             " dimensions"));
  }
  for (size_t d = 0; d < shape.size(); ++d) {
    if (box.offset[d] > shape[d] || box.extent[d] > shape[d] - box.offset[d]) {
      return absl::InvalidArgumentError(
          StrCat("a box with offset ", box.offset[d], " and extent ", box.extent[d], " in dimension ", d,
                 ": outside the tensor, of shape [", absl::StrJoin(shape, ", "), "]"));
    }
  }
  return absl::OkStatus();
}

bool Contains(const Box& outer, const Box& inner) {
  ESKER_CHECK(outer.rank() == inner.rank());
  if (inner.empty()) return true;
  for (size_t d = 0; d < outer.rank(); ++d) {
    if (inner.offset[d] < outer.offset[d] || End(inner, d) > End(outer, d)) return false;
  }
  return true;
}

std::optional<Box> Intersect(const Box& a, const Box& b) {
  ESKER_CHECK(a.rank() == b.rank());
  for (size_t d = 0; d < a.rank(); ++d) {
    if (std::max(a.offset[d], b.offset[d]) >= std::min(End(a, d), End(b, d))) return std::nullopt;
  }
  Box common = a;
  for (size_t d = 0; d < a.rank(); ++d) {
    common.offset[d] = std::max(a.offset[d], b.offset[d]);
    common.extent[d] = std::min(End(a, d), End(b, d)) - common.offset[d];
  }
  return common;
}

std::vector<Box> Subtract(const Box& from, const Box& what) {
  if (from.empty()) return {};
  const std::optional<Box> common = Intersect(from, what);
  if (!common.has_value()) return {from};
  std::vector<Box> rest;
  Box middle = from;  // narrowed to `common` one dimension after the other
  for (size_t d = 0; d < from.rank(); ++d) {
    if (common->offset[d] > middle.offset[d]) {
      rest.push_back(middle);
      rest.back().extent[d] = common->offset[d] - middle.offset[d];
    }
    if (End(*common, d) < End(middle, d)) {
      rest.push_back(middle);
      rest.back().offset[d] = End(*common, d);
      rest.back().extent[d] = End(middle, d) - End(*common, d);
    }
    middle.offset[d] = common->offset[d];
    middle.extent[d] = common->extent[d];
  }
  return rest;
}

void ForEachRun(const Box& source, const Box& target, const Box& part, uint64_t element_bytes,
                const std::function<void(const ByteRun&)>& run) {
  ESKER_CHECK(Contains(source, part) && Contains(target, part));
  if (part.empty()) return;
  // From the innermost dimension out: the run grows while it is contiguous in both, then come loops around
  // it.
  ByteRun at = {0, 0, element_bytes};
  absl::InlinedVector<Loop, 8> loops;
  uint64_t source_stride = element_bytes;
  uint64_t target_stride = element_bytes;
  for (size_t d = part.rank(); d-- > 0;) {
    at.source_offset += (part.offset[d] - source.offset[d]) * source_stride;
    at.target_offset += (part.offset[d] - target.offset[d]) * target_stride;
    if (source_stride == at.bytes && target_stride == at.bytes) {
      at.bytes *= part.extent[d];
    } else if (part.extent[d] > 1) {
      loops.push_back({part.extent[d], source_stride, target_stride});
    }
    source_stride *= source.extent[d];
    target_stride *= target.extent[d];
  }
  absl::InlinedVector<uint64_t, 8> done(loops.size(), 0);
  while (true) {
    run(at);
    size_t i = 0;
    for (; i < loops.size(); ++i) {
      at.source_offset += loops[i].source_stride;
      at.target_offset += loops[i].target_stride;
      if (++done[i] < loops[i].count) break;
      at.source_offset -= loops[i].count * loops[i].source_stride;
      at.target_offset -= loops[i].count * loops[i].target_stride;
      done[i] = 0;
    }
    if (i == loops.size()) return;
  }
}

}  // namespace esker
