#include "format/part_envelope.h"

#include "format/envelope.h"
#include "format/proto/checkpoint.pb.h"

namespace esker {

std::string EncodePartEnvelope(const v1::SaveContext& save, const PartContent& content) {
  v1::Part part;
  part.set_run(save.run());
  part.set_step(save.step());
  part.set_attempt(save.attempt());
  part.set_save_id(save.save_id());
  part.set_rank(save.rank());
  part.set_layout_digest(std::string(content.layout_digest.AsText()));
  part.mutable_chunk_hashes()->reserve(content.chunk_hashes.size() * sizeof(Hash128));
  for (const Hash128& hash : content.chunk_hashes) part.mutable_chunk_hashes()->append(hash.AsText());
  part.mutable_item_bytes()->Add(content.item_bytes.begin(), content.item_bytes.end());
  part.mutable_item_chunk_raw_bytes()->Add(content.item_chunk_raw_bytes.begin(),
                                           content.item_chunk_raw_bytes.end());
  part.set_raw_bytes(content.raw_bytes);
  return EncodeEnvelope(EnvelopeKind::kPart, part);
}

}  // namespace esker
