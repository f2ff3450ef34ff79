#include "client/checkpoint_metadata.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"

namespace esker {
namespace {

// The most that one request may ask for.
constexpr size_t kMostAsked = 1024;

}  // namespace

CheckpointMetadata::CheckpointMetadata(std::shared_ptr<Connection> connection, v1::CheckpointRecord record,
                                       uint64_t timeout_ms)
    : connection_(std::move(connection)),
      record_(std::move(record)),
      timeout_ms_(timeout_ms),
      label_(StrCat("run ", record_.run(), ", step ", record_.step())) {}

absl::Status CheckpointMetadata::Damaged(std::string_view what) const {
  return absl::DataLossError(StrCat(label_, ": ", what));
}

absl::Status CheckpointMetadata::CheckRecord(const v1::CheckpointRecord& record) const {
  if (record.run() == record_.run() && record.step() == record_.step() &&
      record.save_id() == record_.save_id()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      StrCat(label_, ": the step was saved again since this checkpoint was opened; open it again"));
}

absl::StatusOr<v1::GetCheckpointResponse> CheckpointMetadata::GetCheckpoint(
    const std::vector<uint32_t>& ranks) {
  v1::GetCheckpointRequest request;
  request.set_run(record_.run());
  request.set_step(record_.step());
  request.mutable_ranks()->Add(ranks.begin(), ranks.end());
  ESKER_ASSIGN_OR_RETURN(v1::GetCheckpointResponse response,
                         connection_->CallUntil("GetCheckpoint", &v1::Coordinator::Stub::GetCheckpoint,
                                                request, Deadline::After(timeout_ms_)));
  ESKER_RETURN_IF_ERROR(CheckRecord(response.record()));
  return response;
}

absl::Status CheckpointMetadata::AddEntry(const v1::PartEntry& entry) {
  Entry checked;
  ESKER_ASSIGN_OR_RETURN(checked.part_digest, HashFromBytes(entry.part_digest(), "part_digest"));
  ESKER_ASSIGN_OR_RETURN(checked.layout_digest, HashFromBytes(entry.layout_digest(), "layout_digest"));
  if (entry.rank() >= record_.world_size()) {
    return absl::InvalidArgumentError(
        StrCat("an entry of rank ", entry.rank(), " in a world of ", record_.world_size()));
  }
  entries_[entry.rank()] = checked;
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::AddEntries(const v1::GetCheckpointResponse& response) {
  MutexLock lock(&mu_);
  for (const v1::PartEntry& entry : response.parts()) {
    if (const absl::Status status = AddEntry(entry); !status.ok()) return Damaged(MessageOf(status));
  }
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::LoadManifest() {
  MutexLock lock(&mu_);
  return has_manifest_ ? absl::OkStatus() : LoadWholeManifest();
}

absl::Status CheckpointMetadata::LoadWholeManifest() {
  ESKER_ASSIGN_OR_RETURN(const v1::GetCheckpointResponse response, GetCheckpoint({}));
  const std::string& envelope = response.manifest_envelope();
  if (HashOf(AsBytes(envelope)).AsText() != record_.manifest_digest()) {
    return Damaged("the manifest does not have the digest that the catalog has");
  }
  const absl::StatusOr<v1::Manifest> manifest =
      DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, envelope);
  if (!manifest.ok()) return Damaged(MessageOf(manifest.status()));
  if (manifest->run() != record_.run() || manifest->step() != record_.step() ||
      manifest->save_id() != record_.save_id() || manifest->world_size() != record_.world_size() ||
      static_cast<uint64_t>(manifest->parts_size()) != record_.world_size()) {
    return Damaged(StrCat("the manifest is that of run ", manifest->run(), ", step ", manifest->step(),
                          ", with ", manifest->parts_size(), " parts"));
  }
  for (int i = 0; i < manifest->parts_size(); ++i) {
    if (manifest->parts(i).rank() != static_cast<uint32_t>(i)) {
      return Damaged(StrCat("manifest: expected the entry of rank ", i, ", found that of rank ",
                            manifest->parts(i).rank()));
    }
    if (const absl::Status status = AddEntry(manifest->parts(i)); !status.ok())
      return Damaged(MessageOf(status));
  }
  has_manifest_ = true;
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::LoadEntries(const std::vector<uint32_t>& ranks) {
  std::vector<uint32_t> wanted;
  for (const uint32_t rank : ranks) {
    if (rank >= record_.world_size()) {
      return absl::InvalidArgumentError(StrCat(label_, ": there is no rank ", rank,
                                               ": it was saved by ranks 0 to ", record_.world_size() - 1));
    }
    if (!entries_.contains(rank)) wanted.push_back(rank);
  }
  if (wanted.empty()) return absl::OkStatus();
  if (wanted.size() > 1) return LoadWholeManifest();
  ESKER_ASSIGN_OR_RETURN(const v1::GetCheckpointResponse response, GetCheckpoint(wanted));
  for (const v1::PartEntry& entry : response.parts()) {
    if (const absl::Status status = AddEntry(entry); !status.ok()) return Damaged(MessageOf(status));
  }
  if (!entries_.contains(wanted[0])) return Damaged(StrCat("the server has no entry of rank ", wanted[0]));
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::AddLayout(const Hash128& digest, const std::string& envelope) {
  if (HashOf(AsBytes(envelope)) != digest) {
    return Damaged(StrCat("the server sent a layout other than ", digest.ToHex()));
  }
  absl::StatusOr<v1::Layout> layout = DecodeEnvelope<v1::Layout>(EnvelopeKind::kLayout, envelope);
  const absl::Status status = layout.ok() ? ValidateLayout(*layout) : layout.status();
  if (!status.ok()) return Damaged(StrCat("layout ", digest.ToHex(), ": ", MessageOf(status)));
  layouts_[digest] = std::make_shared<const v1::Layout>(*std::move(layout));
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::LoadLayouts(const std::vector<uint32_t>& ranks) {
  ESKER_RETURN_IF_ERROR(LoadEntries(ranks));
  std::vector<Hash128> wanted;
  absl::flat_hash_set<Hash128> seen;
  for (const uint32_t rank : ranks) {
    const Hash128& digest = entries_.at(rank).layout_digest;
    if (!layouts_.contains(digest) && seen.insert(digest).second) wanted.push_back(digest);
  }
  for (size_t done = 0; done < wanted.size();) {
    const size_t asked = std::min(kMostAsked, wanted.size() - done);
    v1::GetLayoutsRequest request;
    for (size_t i = 0; i < asked; ++i) request.add_digests(std::string(wanted[done + i].AsText()));
    ESKER_ASSIGN_OR_RETURN(const v1::GetLayoutsResponse response,
                           connection_->CallUntil("GetLayouts", &v1::Store::Stub::GetLayouts, request,
                                                  Deadline::After(timeout_ms_)));
    const auto got = static_cast<size_t>(response.layout_envelopes_size());
    if (got == 0 || got > asked) return Damaged(StrCat("asked for ", asked, " layouts, got ", got));
    for (size_t i = 0; i < got; ++i) {
      ESKER_RETURN_IF_ERROR(AddLayout(wanted[done + i], response.layout_envelopes(static_cast<int>(i))));
    }
    done += got;
  }
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::AddPart(uint32_t rank, const std::string& envelope) {
  const Entry& entry = entries_.at(rank);
  const auto damaged = [&](std::string_view what) {
    return Damaged(StrCat("part of rank ", rank, ": ", what));
  };
  if (HashOf(AsBytes(envelope)) != entry.part_digest) {
    return damaged(StrCat("it does not have the digest that the manifest has, ", entry.part_digest.ToHex()));
  }
  const absl::StatusOr<v1::Part> part = DecodeEnvelope<v1::Part>(EnvelopeKind::kPart, envelope);
  if (!part.ok()) return damaged(MessageOf(part.status()));
  if (part->run() != record_.run() || part->step() != record_.step() ||
      part->save_id() != record_.save_id() || part->rank() != rank) {
    return damaged(StrCat("it is that of run ", part->run(), ", step ", part->step(), ", rank ", part->rank(),
                          ", save ", part->save_id()));
  }
  if (part->layout_digest() != entry.layout_digest.AsText()) {
    return damaged("it names a layout other than the manifest does");
  }
  const v1::Layout& layout = *layouts_.at(entry.layout_digest);
  if (const absl::Status status = ValidatePart(*part, layout); !status.ok())
    return damaged(MessageOf(status));
  parts_[rank] = std::make_shared<const PartMap>(*part, layout);
  return absl::OkStatus();
}

absl::Status CheckpointMetadata::LoadParts(const std::vector<uint32_t>& ranks) {
  ESKER_RETURN_IF_ERROR(LoadLayouts(ranks));
  std::vector<uint32_t> wanted;
  for (const uint32_t rank : ranks) {
    if (!parts_.contains(rank)) wanted.push_back(rank);
  }
  for (size_t done = 0; done < wanted.size();) {
    const size_t asked = std::min(kMostAsked, wanted.size() - done);
    v1::GetPartsRequest request;
    request.set_run(record_.run());
    request.set_step(record_.step());
    request.set_save_id(record_.save_id());
    for (size_t i = 0; i < asked; ++i) request.add_ranks(wanted[done + i]);
    ESKER_ASSIGN_OR_RETURN(const v1::GetPartsResponse response,
                           connection_->CallUntil("GetParts", &v1::Store::Stub::GetParts, request,
                                                  Deadline::After(timeout_ms_)));
    const auto got = static_cast<size_t>(response.part_envelopes_size());
    if (got == 0 || got > asked) return Damaged(StrCat("asked for ", asked, " parts, got ", got));
    for (size_t i = 0; i < got; ++i) {
      ESKER_RETURN_IF_ERROR(AddPart(wanted[done + i], response.part_envelopes(static_cast<int>(i))));
    }
    done += got;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::shared_ptr<const v1::Layout>>> CheckpointMetadata::Layouts(
    const std::vector<uint32_t>& ranks) {
  MutexLock lock(&mu_);
  ESKER_RETURN_IF_ERROR(LoadLayouts(ranks));
  std::vector<std::shared_ptr<const v1::Layout>> layouts;
  for (const uint32_t rank : ranks) layouts.push_back(layouts_.at(entries_.at(rank).layout_digest));
  return layouts;
}

absl::StatusOr<std::vector<std::shared_ptr<const PartMap>>> CheckpointMetadata::Parts(
    const std::vector<uint32_t>& ranks) {
  MutexLock lock(&mu_);
  ESKER_RETURN_IF_ERROR(LoadParts(ranks));
  std::vector<std::shared_ptr<const PartMap>> parts;
  for (const uint32_t rank : ranks) parts.push_back(parts_.at(rank));
  return parts;
}

}  // namespace esker
