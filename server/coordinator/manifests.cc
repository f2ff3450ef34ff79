#include "server/coordinator/manifests.h"

#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/envelope.h"
#include "format/hash.h"
#include "server/coordinator/requests.h"

namespace esker {
namespace {

std::string Identity(const std::string& run, uint64_t step, uint64_t attempt, uint64_t save_id,
                     uint32_t world_size) {
  return StrCat(NameOf(run, step), ", attempt ", attempt, ", save ", save_id, ", world size ", world_size);
}

absl::StatusOr<v1::Manifest> Check(const v1::CheckpointRecord& record, const std::string& envelope) {
  const std::string name = NameOf(RefOf(record));
  ESKER_ASSIGN_OR_RETURN(const Hash128 expected,
                         HashFromBytes(record.manifest_digest(), "the manifest's digest"));
  const Hash128 found = HashOf(AsBytes(envelope));
  if (found != expected) {
    return absl::DataLossError(StrCat(name, ": its manifest has the digest ", found.ToHex(),
                                      ", the catalog says ", expected.ToHex(),
                                      "; this checkpoint can't be restored, use another"));
  }
  absl::StatusOr<v1::Manifest> manifest = DecodeEnvelope<v1::Manifest>(EnvelopeKind::kManifest, envelope);
  if (!manifest.ok()) return Annotate(manifest.status(), StrCat(name, ": its manifest"));
  const std::string wanted =
      Identity(record.run(), record.step(), record.attempt(), record.save_id(), record.world_size());
  const std::string stated = Identity(manifest->run(), manifest->step(), manifest->attempt(),
                                      manifest->save_id(), manifest->world_size());
  if (wanted != stated || manifest->parts_size() != static_cast<int>(record.world_size())) {
    return absl::DataLossError(StrCat("the manifest of ", wanted, " says that it is of ", stated, " and has ",
                                      manifest->parts_size(),
                                      " parts; this checkpoint can't be restored, use another"));
  }
  return manifest;
}

}  // namespace

v1::Manifest BuildManifest(const CommitWork& work, int64_t committed_unix_ms) {
  v1::Manifest manifest;
  manifest.set_run(work.record.run());
  manifest.set_step(work.record.step());
  manifest.set_attempt(work.record.attempt());
  manifest.set_save_id(work.record.save_id());
  manifest.set_world_size(work.record.world_size());
  manifest.set_committed_unix_ms(committed_unix_ms);
  manifest.mutable_servers()->Add(work.servers.begin(), work.servers.end());
  manifest.mutable_parts()->Add(work.parts.begin(), work.parts.end());
  return manifest;
}

absl::StatusOr<std::shared_ptr<const StoredManifest>> Manifests::Read(const v1::CheckpointRecord& record) {
  const SaveRef save = RefOf(record);
  {
    MutexLock lock(&mu_);
    if (last_ != nullptr && last_save_ == save) return last_;
  }
  ESKER_ASSIGN_OR_RETURN(std::string envelope, store_->GetManifest(save));
  ESKER_ASSIGN_OR_RETURN(v1::Manifest manifest, Check(record, envelope));
  auto stored =
      std::make_shared<const StoredManifest>(StoredManifest{std::move(envelope), std::move(manifest)});
  MutexLock lock(&mu_);
  last_save_ = save;
  last_ = stored;
  return stored;
}

}  // namespace esker
