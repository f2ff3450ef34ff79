#include "server/coordinator/requests.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/hash.h"
#include "format/names.h"

namespace esker {
namespace {

constexpr size_t kMaxReasonBytes = 1000;
constexpr size_t kMaxNoteBytes = 1000;
constexpr int kMaxServersPerPart = 64;
constexpr size_t kMaxServerTextBytes = 256;

absl::Status CheckAttemptNumber(uint64_t attempt) {
  if (attempt != 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "attempt 0: expected the number that OpenRun gave out, which is at least 1");
}

absl::Status CheckServerText(std::string_view what, const std::string& text, size_t least_bytes) {
  const bool printable = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (text.size() >= least_bytes && text.size() <= kMaxServerTextBytes && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("the ", what, " \"", Printable(text),
                                           "\" of a reported server: expected ", least_bytes, " to ",
                                           kMaxServerTextBytes, " printable characters without spaces"));
}

absl::Status CheckServers(const v1::ReportPartRequest& request) {
  if (request.servers_size() > kMaxServersPerPart) {
    return absl::InvalidArgumentError(StrCat("a report that names ", request.servers_size(),
                                             " servers: expected at most ", kMaxServersPerPart));
  }
  for (int i = 0; i < request.servers_size(); ++i) {
    ESKER_RETURN_IF_ERROR(CheckServerText("id", request.servers(i).id(), 1));
    ESKER_RETURN_IF_ERROR(CheckServerText("address", request.servers(i).address(), 0));
    for (int j = 0; j < i; ++j) {
      if (request.servers(i).id() != request.servers(j).id()) continue;
      return absl::InvalidArgumentError(
          StrCat("a report that names the server ", request.servers(i).id(), " twice"));
    }
  }
  if (request.part().servers().empty()) {
    return absl::InvalidArgumentError(
        StrCat("rank ", request.part().rank(), " reports a part that no server holds"));
  }
  std::vector<bool> named(request.servers_size());
  for (const uint32_t index : request.part().servers()) {
    if (index >= named.size() || named[index]) {
      return absl::InvalidArgumentError(StrCat("rank ", request.part().rank(), " reports server number ",
                                               index, ": expected distinct numbers below ",
                                               request.servers_size(), ", of the servers in the report"));
    }
    named[index] = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRunAndStep(const std::string& run, uint64_t step) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(run));
  return ValidateStep(step);
}

absl::Status CheckOpenRun(const v1::OpenRunRequest& request) {
  ESKER_RETURN_IF_ERROR(ValidateRunName(request.run()));
  return ValidateIncarnation(request.incarnation());
}

absl::Status CheckBeginSave(const v1::BeginSaveRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(request.run(), request.step()));
  ESKER_RETURN_IF_ERROR(CheckAttemptNumber(request.attempt()));
  return ValidateRank(request.rank(), request.world_size());
}

absl::Status CheckSaveContext(const v1::SaveContext& save) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(save.run(), save.step()));
  ESKER_RETURN_IF_ERROR(CheckAttemptNumber(save.attempt()));
  if (save.save_id() == 0) {
    return absl::InvalidArgumentError(
        "save id 0: expected the number that BeginSave gave out, which is never 0");
  }
  return ValidateRank(save.rank(), kMaxWorldSize);
}

absl::Status CheckReportPart(const v1::ReportPartRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckSaveContext(request.save()));
  const v1::PartEntry& part = request.part();
  if (part.rank() != request.save().rank()) {
    return absl::InvalidArgumentError(
        StrCat("rank ", request.save().rank(), " reports the part of rank ", part.rank()));
  }
  ESKER_RETURN_IF_ERROR(HashFromBytes(part.part_digest(), "the part's digest").status());
  ESKER_RETURN_IF_ERROR(HashFromBytes(part.layout_digest(), "the layout's digest").status());
  return CheckServers(request);
}

absl::Status CheckPin(const v1::PinCheckpointRequest& request) {
  ESKER_RETURN_IF_ERROR(CheckRunAndStep(request.run(), request.latest() ? 0 : request.step()));
  if (request.note().empty()) return absl::OkStatus();
  if (request.note().size() > kMaxNoteBytes) {
    return absl::InvalidArgumentError(
        StrCat("a pin's note of ", request.note().size(), " bytes: expected at most ", kMaxNoteBytes));
  }
  // The rules of tensor names are those of protobuf's strings (UTF-8): what breaks them could not be read
  // back.
  return Annotate(ValidateTensorName(request.note()), "the pin's note");
}

std::string ReasonFrom(const std::string& text) {
  std::string reason;
  for (const char c : text) {
    if (reason.size() >= kMaxReasonBytes) return reason + "...";
    if (c >= ' ' && c <= '~') {
      reason.push_back(c);
    } else {
      absl::StrAppendFormat(&reason, "\\x%02x", static_cast<uint8_t>(c));
    }
  }
  return reason;
}

SaveRef RefOf(const v1::SaveContext& save) { return {save.run(), save.step(), save.save_id()}; }
SaveRef RefOf(const v1::SaveRecord& record) { return {record.run(), record.step(), record.save_id()}; }
SaveRef RefOf(const v1::CheckpointRecord& record) { return {record.run(), record.step(), record.save_id()}; }

std::string NameOf(const std::string& run, uint64_t step) { return StrCat(run, "@", step); }

}  // namespace esker
