// What Reader and Checkpointer share: finding and opening the checkpoints of a run.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "esker/reader.h"
#include "format/proto/catalog.pb.h"

namespace esker {

// Who reads what, and how.
struct CheckpointAccess {
  std::shared_ptr<Connection> connection;
  std::string run;
  uint32_t likely_rank =
      0;  // whose metadata is fetched with the checkpoint's record: probably the one that is wanted
  uint64_t timeout_ms = 0;  // for reaching the server, each time anew
  int threads = 0;          // as in the options
  Transport transport = Transport::kAuto;
};

CheckpointInfo ToInfo(const v1::CheckpointRecord& record);

// Errors as those of Reader::List, Checkpointer::LatestStep and Reader::OpenCheckpoint.
absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints(const CheckpointAccess& access);
absl::StatusOr<std::optional<uint64_t>> FindLatestStep(const CheckpointAccess& access);
absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpointReader(const CheckpointAccess& access,
                                                                       std::optional<uint64_t> step);

}  // namespace esker
