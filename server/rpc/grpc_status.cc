#include "server/rpc/grpc_status.h"

#include <string>

#include "format/base/text.h"

namespace esker {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message(status.message());
  if (message.size() > kMaxStatusMessageBytes) {
    constexpr size_t kKeptBytes = kMaxStatusMessageBytes / 2 - 8;
    message = StrCat(message.substr(0, kKeptBytes), " [...] ", message.substr(message.size() - kKeptBytes));
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

}  // namespace esker
