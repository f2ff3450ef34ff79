// What the coordinator's requests must look like, whatever the catalog holds: kInvalidArgument says what is
// wrong.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "format/proto/service.pb.h"
#include "server/store/store.h"

namespace esker {

inline constexpr uint32_t kMaxWaitMs = 60'000;

absl::Status CheckOpenRun(const v1::OpenRunRequest& request);
absl::Status CheckBeginSave(const v1::BeginSaveRequest& request);
// All but whether the rank is within the world size, which the save's record says.
absl::Status CheckSaveContext(const v1::SaveContext& save);
absl::Status CheckReportPart(const v1::ReportPartRequest& request);
absl::Status CheckPin(const v1::PinCheckpointRequest& request);
absl::Status CheckRunAndStep(const std::string& run,
                             uint64_t step);  // Text of clients and systems, made fit for records, logs and
                                              // terminals: printable ASCII, and cut.
std::string ReasonFrom(const std::string& text);

SaveRef RefOf(const v1::SaveContext& save);
SaveRef RefOf(const v1::SaveRecord& record);
SaveRef RefOf(const v1::CheckpointRecord& record);
// "run@step", as the tools name a checkpoint.
std::string NameOf(const std::string& run, uint64_t step);
inline std::string NameOf(const SaveRef& save) { return NameOf(save.run, save.step); }

}  // namespace esker
