// What is checked of a part before it gets to the committer.
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "format/base/bytes.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/layout.h"
#include "server/store/seal_group.h"

namespace esker::store {
namespace {

// What a client sends and is damaged is its fault, not the store's.
absl::Status AsInvalid(const absl::Status& status, std::string_view what) {
  if (status.ok()) return status;
  return absl::InvalidArgumentError(StrCat(what, ": ", status.message()));
}

absl::Status CheckNames(const v1::Part& message, const PartRef& part) {
  const PartRef named{.save = {.run = message.run(), .step = message.step(), .save_id = message.save_id()},
                      .attempt = message.attempt(),
                      .rank = message.rank()};
  if (named == part) return absl::OkStatus();
  const auto text = [](const PartRef& ref) {
    return StrCat(ref.save.run, "@", ref.save.step, " save ", absl::Hex(ref.save.save_id), " attempt ",
                  ref.attempt, " rank ", ref.rank);
  };
  return absl::InvalidArgumentError(
      StrCat("part: expected that of ", text(part), ", found that of ", text(named)));
}

absl::StatusOr<std::string> FindLayout(const Index& index, const Hash128& digest, std::string_view given) {
  if (given.empty()) {
    ESKER_ASSIGN_OR_RETURN(std::optional<std::string> stored, index.GetLayout(digest));
    if (stored.has_value()) return *std::move(stored);
    return absl::FailedPreconditionError(
        StrCat("the store has no layout ", digest.ToHex(), ": send its envelope along with the part"));
  }
  const Hash128 found = HashOf(AsBytes(given));
  if (found == digest) return std::string(given);
  return absl::InvalidArgumentError(
      StrCat("layout: the part names ", digest.ToHex(), ", but the envelope's digest is ", found.ToHex()));
}

}  // namespace

absl::StatusOr<SealRequest> PrepareSeal(const Index& index, const PartRef& part,
                                        std::string_view part_envelope, std::string_view layout_envelope) {
  absl::StatusOr<v1::Part> message = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, part_envelope);
  ESKER_RETURN_IF_ERROR(AsInvalid(message.status(), "part"));
  ESKER_RETURN_IF_ERROR(CheckNames(*message, part));
  absl::StatusOr<Hash128> layout_digest = HashFromBytes(message->layout_digest(), "part: layout_digest");
  ESKER_RETURN_IF_ERROR(layout_digest.status());

  SealRequest request{.part = part,
                      .part_envelope = part_envelope,
                      .part_digest = HashOf(AsBytes(part_envelope)),
                      .layout_digest = *layout_digest,
                      .raw_bytes = message->raw_bytes()};
  ESKER_ASSIGN_OR_RETURN(request.layout_envelope, FindLayout(index, *layout_digest, layout_envelope));
  absl::StatusOr<v1::Layout> layout =
      DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, request.layout_envelope);
  ESKER_RETURN_IF_ERROR(AsInvalid(layout.status(), "layout"));
  if (!layout_envelope.empty()) ESKER_RETURN_IF_ERROR(ValidateLayout(*layout));
  ESKER_RETURN_IF_ERROR(ValidatePart(*message, *layout));

  const PartMap map(*message, *layout);
  absl::flat_hash_map<Hash128, uint64_t> seen;
  for (const PartChunk& chunk : map.chunks()) {
    const auto [known, is_new] = seen.try_emplace(chunk.hash, chunk.raw_bytes);
    if (known->second != chunk.raw_bytes) {
      return absl::InvalidArgumentError(StrCat("part: it names chunk ", chunk.hash.ToHex(), " once with ",
                                               known->second, " and once with ", chunk.raw_bytes,
                                               " raw bytes"));
    }
    if (!is_new) continue;
    request.chunks.push_back(chunk.hash);
    request.chunk_raw_bytes.push_back(chunk.raw_bytes);
  }
  return request;
}

absl::StatusOr<std::optional<SealResult>> FindSealed(const Index& index, const SealRequest& request) {
  ESKER_ASSIGN_OR_RETURN(const std::optional<PartEntry> sealed, index.GetPart(request.key()));
  if (!sealed.has_value()) return std::nullopt;
  if (sealed->part_digest != request.part_digest) {
    const PartRef& part = request.part;
    return absl::AlreadyExistsError(
        StrCat("part of ", part.save.run, "@", part.save.step, " rank ", part.rank, ": sealed as ",
               sealed->part_digest.ToHex(), " (attempt ", sealed->attempt, "), now asked to seal ",
               request.part_digest.ToHex(), " (attempt ", part.attempt, "); two processes claim this rank"));
  }
  SealResult result;
  FillPartEntry(request.part.rank, *sealed, &result.entry);
  return result;
}

void FillPartEntry(uint32_t rank, const PartEntry& from, v1::PartEntry* to) {
  to->set_rank(rank);
  to->set_part_digest(std::string(from.part_digest.AsText()));
  to->set_layout_digest(std::string(from.layout_digest.AsText()));
  to->set_raw_bytes(from.raw_bytes);
  to->set_stored_bytes(from.stored_bytes);
  to->set_new_stored_bytes(from.new_stored_bytes);
}

}  // namespace esker::store
