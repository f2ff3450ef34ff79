#include "server/store/commit_context.h"

#include <utility>

namespace esker::store {

absl::Status CommitContext::Write(IndexBatch batch) {
  absl::Status status = index->Write(std::move(batch));
  if (status.ok() == write_failed_) {
    write_failed_ = !status.ok();
    segments->HoldReclaim(write_failed_);
    if (!write_failed_) segments->ScheduleReclaim();
  }
  return status;
}

void CommitContext::ReleaseForgotten(const std::vector<WrittenChunk>& chunks) {
  if (chunks.empty()) return;
  std::vector<ReleasedPlace> places;
  places.reserve(chunks.size());
  for (const WrittenChunk& chunk : chunks) {
    places.push_back({.segment_id = chunk.place.segment_id,
                      .extent = {chunk.place.offset, RecordBytes(chunk.info.stored_bytes)}});
  }
  segments->Release(places);
  segments->ScheduleReclaim();
}

}  // namespace esker::store
