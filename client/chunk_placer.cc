#include "client/chunk_placer.h"

#include <cstring>

#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/codec.h"

namespace esker {
namespace {

MutableBytes Scratch(std::vector<std::byte>* scratch, uint64_t bytes) {
  if (scratch->size() < bytes) scratch->resize(bytes);
  return MutableBytes(*scratch).first(bytes);
}

// Copies the pieces together and returns its checksum.
uint32_t Gather(const std::vector<ByteView>& pieces, MutableBytes to) {
  uint32_t crc = 0;
  uint64_t at = 0;
  for (const ByteView piece : pieces) {
    const MutableBytes place = to.subspan(at, piece.size());
    std::memcpy(place.data(), piece.data(), piece.size());
    crc = Crc32c(place, crc);
    at += piece.size();
  }
  return crc;
}

}  // namespace

absl::StatusOr<Hash128> ChunkPlacer::Decode(const FetchedChunk& fetched, MutableBytes raw) {
  const ChunkInfo& info = fetched.info;
  const Codec* codec = FindCodec(info.codec);
  if (codec == nullptr) {
    return absl::UnimplementedError(
        StrCat("codec ", static_cast<int>(info.codec), " is unknown to this version"));
  }
  const MutableBytes stored = Scratch(&stored_scratch_, info.stored_bytes);
  if (const uint32_t crc = Gather(fetched.stored, stored); crc != info.stored_crc32c) {
    return absl::DataLossError(
        absl::StrFormat("its stored bytes have CRC-32C %08x, expected %08x", crc, info.stored_crc32c));
  }
  ESKER_RETURN_IF_ERROR(codec->decode(stored, info.dtype, raw));
  return HashOf(raw);
}

absl::StatusOr<uint64_t> ChunkPlacer::Place(const RestoreChunk& chunk, const FetchedChunk& fetched) {
  const ChunkInfo& info = fetched.info;
  if (info.hash != chunk.hash || info.raw_bytes != chunk.raw_bytes) {
    return absl::DataLossError(StrCat("expected ", chunk.raw_bytes, " raw bytes, the server sent chunk ",
                                      info.hash.ToHex(), " of ", info.raw_bytes));
  }
  std::byte* const place = plan_->WholePlace(chunk);
  const MutableBytes raw =
      place != nullptr ? MutableBytes(place, chunk.raw_bytes) : Scratch(&raw_scratch_, chunk.raw_bytes);
  ESKER_ASSIGN_OR_RETURN(const Hash128 hash, info.codec == CodecId::kRaw ? CopyAndHash(fetched.stored, raw)
                                                                         : Decode(fetched, raw));
  if (hash != chunk.hash) {
    return absl::DataLossError(StrCat("its raw bytes have the hash ", hash.ToHex()));
  }
  if (place != nullptr) return chunk.raw_bytes;
  uint64_t placed = 0;
  plan_->ForEachRun(chunk, [&](uint64_t offset, std::byte* to, uint64_t bytes) {
    std::memcpy(to, raw.data() + offset, bytes);
    placed += bytes;
  });
  return placed;
}

}  // namespace esker
