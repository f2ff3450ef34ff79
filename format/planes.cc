#include "format/planes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/byte_planes.h"
#include "format/plane_plan.h"
#include "format/zstd_frame.h"

namespace esker {
namespace {

constexpr size_t kHeadBytes = 4;
constexpr size_t kEntryBytes = 4;
constexpr uint32_t kStoredBytesMask = (1 << 24) - 1;
constexpr int kKindShift = 24;
// Planes in scratch memory lie this much further apart, or they would compete for the same lines of the
// cache.
constexpr size_t kPlaneGapBytes = 64;

// How the raw bytes are cut, which the dtype and their number decide.
struct Cut {
  Cut(DType dtype, uint64_t raw_bytes)
      : raw_bytes(raw_bytes),
        width(PlaneWidth(dtype, raw_bytes)),
        blocks((raw_bytes + kPlanesBlockBytes - 1) / kPlanesBlockBytes),
        payload_offset(kHeadBytes + kEntryBytes * blocks * width) {}

  uint64_t BlockBytes(size_t block) const {
    return std::min(kPlanesBlockBytes, raw_bytes - block * kPlanesBlockBytes);
  }
  uint64_t PlaneBytes(size_t block) const { return BlockBytes(block) / width; }
  size_t EntryOffset(size_t block, size_t plane) const {
    return kHeadBytes + kEntryBytes * (block * width + plane);
  }

  uint64_t raw_bytes;
  size_t width;
  size_t blocks;
  size_t payload_offset;
};

struct Entry {
  PlaneKind kind;
  size_t stored_bytes;
};

void StoreEntry(Entry entry, std::byte* to) {
  const auto kind = static_cast<uint32_t>(entry.kind);
  StoreLittle<uint32_t>(to, kind << kKindShift | static_cast<uint32_t>(entry.stored_bytes));
}

// A block's planes and, to decode parts of blocks, a block. Each thread has one: it is used again, since
// fresh memory is slow.
struct Scratch {
  std::byte* plane(size_t k, size_t plane_bytes) {
    return planes.data() + k * (plane_bytes + kPlaneGapBytes);
  }

  std::array<std::byte, kPlanesBlockBytes + kMaxPlanes * kPlaneGapBytes> planes;
  std::array<std::byte, kPlanesBlockBytes> block;
};

Scratch& ThreadsScratch() {
  thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

bool IsConstant(ByteView plane) { return std::memcmp(plane.data(), plane.data() + 1, plane.size() - 1) == 0; }

// --- Encoding ------------------------------------------------------------------------------------

class Encoder {
 public:
  // `room` is all that the encoding may take.
  Encoder(ByteView raw, DType dtype, const PlanePlan& plan, MutableBytes room)
      : raw_(raw), cut_(dtype, raw.size()), plan_(plan), room_(room) {}

  // The encoding's length; 0 if it does not fit.
  size_t Run();

 private:
  bool EncodeBlock(size_t block);
  // Writes a plane to where the encoding ends, as small as `effort` makes it. Nothing if it does not fit.
  std::optional<Entry> Append(ByteView plane, PlaneEffort effort);

  const ByteView raw_;
  const Cut cut_;
  const PlanePlan& plan_;
  const MutableBytes room_;
  size_t end_ = 0;  // of what is written
};

size_t Encoder::Run() {
  if (room_.size() < cut_.payload_offset) return 0;
  StoreLittle<uint32_t>(room_.data(), static_cast<uint32_t>(plan_.shape.rotation));
  end_ = cut_.payload_offset;
  for (size_t block = 0; block < cut_.blocks; ++block) {
    if (!EncodeBlock(block)) return 0;
  }
  return end_;
}

bool Encoder::EncodeBlock(size_t block) {
  const auto& efforts = plan_.blocks[block];
  const size_t plane_bytes = cut_.PlaneBytes(block);
  // The lowest planes, if they are to be stored as they are, are split right to their place.
  size_t in_place = 0;
  while (in_place < cut_.width && efforts[in_place] == PlaneEffort::kStore) ++in_place;
  if (room_.size() - end_ < in_place * plane_bytes) return false;
  std::array<std::byte*, kMaxPlanes> planes = {};
  for (size_t k = 0; k < cut_.width; ++k) {
    planes[k] = k < in_place ? room_.data() + end_ + k * plane_bytes : ThreadsScratch().plane(k, plane_bytes);
  }
  SplitPlanes(plan_.shape, raw_.data() + block * kPlanesBlockBytes, plane_bytes, planes.data());
  end_ += in_place * plane_bytes;
  for (size_t k = 0; k < cut_.width; ++k) {
    std::optional<Entry> entry = Entry{PlaneKind::kRaw, plane_bytes};
    if (k >= in_place) entry = Append({planes[k], plane_bytes}, efforts[k]);
    if (!entry.has_value()) return false;
    StoreEntry(*entry, room_.data() + cut_.EntryOffset(block, k));
  }
  return true;
}

// The frame's length; 0 if it is not smaller than the plane, or does not fit.
size_t EncodeFrame(ByteView plane, PlaneEffort effort, MutableBytes to) {
  size_t bytes = EncodeZstdFrame(FrameEffort::kHuffman, plane, to);
  if (bytes >= plane.size()) bytes = 0;
  if (effort == PlaneEffort::kBoth) {
    // It is slower to read back: it must save a twentieth more.
    const size_t limit = bytes == 0 ? std::min(plane.size() - 1, to.size()) : bytes - bytes / 20;
    const MutableBytes other = MutableBytes(ThreadsScratch().block).first(limit);
    if (const size_t matches = EncodeZstdFrame(FrameEffort::kMatches, plane, other); matches != 0) {
      std::memcpy(to.data(), other.data(), matches);
      bytes = matches;
    }
  }
  return bytes;
}

std::optional<Entry> Encoder::Append(ByteView plane, PlaneEffort effort) {
  const MutableBytes to = room_.subspan(end_);
  if (to.empty()) return std::nullopt;
  Entry entry = {PlaneKind::kRaw, plane.size()};
  if (effort != PlaneEffort::kStore && IsConstant(plane)) {
    to[0] = plane[0];
    entry = {PlaneKind::kConstant, 1};
  } else if (const size_t bytes = effort == PlaneEffort::kStore ? 0 : EncodeFrame(plane, effort, to);
             bytes != 0) {
    entry = {PlaneKind::kFrame, bytes};
  } else if (plane.size() <= to.size()) {
    std::memcpy(to.data(), plane.data(), plane.size());
  } else {
    return std::nullopt;
  }
  end_ += entry.stored_bytes;
  return entry;
}

// --- Decoding ------------------------------------------------------------------------------------

absl::Status Damaged(std::string_view what) { return absl::DataLossError(StrCat("codec planes: ", what)); }

class Decoder {
 public:
  Decoder(ByteView stored, DType dtype, uint64_t raw_bytes) : stored_(stored), cut_(dtype, raw_bytes) {}

  // Checks the head and the table: after that, every plane's stored bytes lie in `stored`.
  absl::Status Open();
  // Decodes bytes `offset` to `offset + to.size()`.
  absl::Status Read(uint64_t offset, MutableBytes to);

 private:
  Entry EntryOf(size_t block, size_t plane) const {
    const auto entry = LoadLittle<uint32_t>(stored_.data() + cut_.EntryOffset(block, plane));
    return {static_cast<PlaneKind>(entry >> kKindShift), entry & kStoredBytesMask};
  }
  size_t StoredBytes(size_t block) const;
  absl::Status CheckEntry(size_t block, size_t plane) const;
  // Decodes the block whose stored bytes begin at `at`.
  absl::Status ReadBlock(size_t block, size_t at, std::byte* to) const;

  const ByteView stored_;
  const Cut cut_;
  int rotation_ = 0;
};

absl::Status Decoder::CheckEntry(size_t block, size_t plane) const {
  const Entry entry = EntryOf(block, plane);
  const size_t plane_bytes = cut_.PlaneBytes(block);
  bool is_right = false;
  switch (entry.kind) {
    case PlaneKind::kRaw:
      is_right = entry.stored_bytes == plane_bytes;
      break;
    case PlaneKind::kConstant:
      is_right = entry.stored_bytes == 1;
      break;
    case PlaneKind::kFrame:
      is_right = entry.stored_bytes > 0 && entry.stored_bytes < plane_bytes;
      break;
  }
  if (is_right) return absl::OkStatus();
  return Damaged(StrCat("block ", block, ", plane ", plane, " of ", plane_bytes, " bytes: found the kind ",
                        static_cast<int>(entry.kind), " with ", entry.stored_bytes, " stored bytes"));
}

absl::Status Decoder::Open() {
  if (stored_.size() < cut_.payload_offset) {
    return Damaged(
        StrCat("cut short: expected at least ", cut_.payload_offset, " bytes, found ", stored_.size()));
  }
  const auto head = LoadLittle<uint32_t>(stored_.data());
  rotation_ = static_cast<int>(head & 0xff);
  if (head > 0xff || !IsPlaneShape({cut_.width, rotation_})) {
    return Damaged(StrCat("expected a rotation that elements of ", cut_.width, " bytes have, found ", head));
  }
  uint64_t expected = cut_.payload_offset;
  for (size_t block = 0; block < cut_.blocks; ++block) {
    for (size_t plane = 0; plane < cut_.width; ++plane) ESKER_RETURN_IF_ERROR(CheckEntry(block, plane));
    expected += StoredBytes(block);
  }
  if (expected != stored_.size()) {
    return Damaged(StrCat("expected ", expected, " bytes by its table, found ", stored_.size()));
  }
  return absl::OkStatus();
}

size_t Decoder::StoredBytes(size_t block) const {
  size_t bytes = 0;
  for (size_t plane = 0; plane < cut_.width; ++plane) bytes += EntryOf(block, plane).stored_bytes;
  return bytes;
}

absl::Status Decoder::Read(uint64_t offset, MutableBytes to) {
  size_t at = cut_.payload_offset;
  for (size_t block = 0; block < cut_.blocks; ++block) {
    const uint64_t block_begin = block * kPlanesBlockBytes;
    const uint64_t begin = std::max(offset, block_begin);
    const uint64_t end = std::min(offset + to.size(), block_begin + cut_.BlockBytes(block));
    if (begin < end) {
      std::byte* const target = to.data() + (begin - offset);
      if (end - begin == cut_.BlockBytes(block)) {
        ESKER_RETURN_IF_ERROR(ReadBlock(block, at, target));
      } else {
        std::byte* const whole = ThreadsScratch().block.data();
        ESKER_RETURN_IF_ERROR(ReadBlock(block, at, whole));
        std::memcpy(target, whole + (begin - block_begin), end - begin);
      }
    }
    at += StoredBytes(block);
  }
  return absl::OkStatus();
}

absl::Status Decoder::ReadBlock(size_t block, size_t at, std::byte* to) const {
  const size_t plane_bytes = cut_.PlaneBytes(block);
  std::array<const std::byte*, kMaxPlanes> planes = {};
  for (size_t k = 0; k < cut_.width; ++k) {
    const Entry entry = EntryOf(block, k);
    const ByteView stored = stored_.subspan(at, entry.stored_bytes);
    std::byte* const scratch = ThreadsScratch().plane(k, plane_bytes);
    planes[k] = entry.kind == PlaneKind::kRaw ? stored.data() : scratch;
    if (entry.kind == PlaneKind::kConstant) std::memset(scratch, static_cast<int>(stored[0]), plane_bytes);
    if (entry.kind == PlaneKind::kFrame) {
      if (absl::Status status = DecodeZstdFrame(stored, {scratch, plane_bytes}); !status.ok()) {
        return Annotate(status, StrCat("codec planes: block ", block, ", plane ", k));
      }
    }
    at += entry.stored_bytes;
  }
  JoinPlanes({cut_.width, rotation_}, planes.data(), plane_bytes, to);
  return absl::OkStatus();
}

}  // namespace

bool EncodePlanes(ByteView raw, DType dtype, std::vector<std::byte>* to) {
  const PlanePlan plan = PlanPlanes(raw, dtype, kPlanesBlockBytes);
  if (!plan.is_worth_it) {
    to->clear();
    return false;
  }
  to->resize(raw.size() - 1);
  to->resize(Encoder(raw, dtype, plan, *to).Run());
  return !to->empty();
}

absl::Status DecodePlanes(ByteView stored, DType dtype, MutableBytes raw) {
  return DecodePlanesRange(stored, dtype, raw.size(), 0, raw);
}

absl::Status DecodePlanesRange(ByteView stored, DType dtype, uint64_t raw_bytes, uint64_t offset,
                               MutableBytes to) {
  ESKER_CHECK(offset <= raw_bytes && to.size() <= raw_bytes - offset);
  Decoder decoder(stored, dtype, raw_bytes);
  ESKER_RETURN_IF_ERROR(decoder.Open());
  return decoder.Read(offset, to);
}

}  // namespace esker
