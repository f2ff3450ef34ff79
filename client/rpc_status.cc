#include "client/rpc_status.h"

#include "format/base/text.h"

namespace esker {

absl::Status FromGrpc(const grpc::Status& status, std::string_view server, std::string_view call) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string where = StrCat("server ", server, ": ", call, ": ");
  const std::string& message = status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      // The server may have said it itself (it is stopping, or has too much to do): that is in the message
      // then.
      return absl::Status(code,
                          StrCat(where, message, " (is eskerd running there, and is the address right?)"));
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::Status(code, StrCat(where, "the server does not know this call (", message,
                                       "); is it an eskerd of this version?"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::Status(code, StrCat(where, "no answer in time (", message, ")"));
    default:
      return absl::Status(code, StrCat(where, message));
  }
}

Retry RetryOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
      return Retry::kAlways;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return Retry::kFewTimes;
    default:
      return Retry::kNever;
  }
}

}  // namespace esker
