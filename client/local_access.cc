#include "client/local_access.h"

#include <sys/stat.h>

#include <utility>

#include "client/log.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

absl::StatusOr<v1::LocalSocketResponse> AskForSocket(Connection* connection, const Deadline& deadline) {
  ESKER_ASSIGN_OR_RETURN(v1::LocalSocketResponse socket,
                         connection->Call("GetLocalSocket", &v1::Store::Stub::GetLocalSocket,
                                          v1::LocalSocketRequest(), deadline));
  if (socket.path().empty()) {
    return absl::UnimplementedError(
        StrCat("server ", connection->server(), " has no Unix socket: ", socket.reason()));
  }
  struct stat info {};
  if (::stat(socket.path().c_str(), &info) != 0 || !S_ISSOCK(info.st_mode)) {
    return absl::NotFoundError(StrCat("server ", connection->server(),
                                      " seems to be on another host (or in another container): its socket ",
                                      socket.path(), " is not visible here"));
  }
  return socket;
}

}  // namespace

absl::StatusOr<std::string> FindLocalSocket(Connection* connection, const Deadline& deadline) {
  ESKER_ASSIGN_OR_RETURN(const v1::LocalSocketResponse socket, AskForSocket(connection, deadline));
  ESKER_RETURN_IF_ERROR(UnixSocket::Connect(socket.path()).status());
  return socket.path();
}

absl::StatusOr<LocalGreeting> GreetLocally(Connection* connection, v1::LocalHello hello, int descriptor,
                                           const Deadline& deadline) {
  ESKER_ASSIGN_OR_RETURN(const v1::LocalSocketResponse where, AskForSocket(connection, deadline));
  LocalGreeting greeting;
  ESKER_ASSIGN_OR_RETURN(greeting.socket, UnixSocket::Connect(where.path()));
  v1::LocalRequest request;
  *request.mutable_hello() = std::move(hello);
  request.mutable_hello()->set_token(where.token());
  ESKER_RETURN_IF_ERROR(greeting.socket.Send(request.SerializeAsString(), descriptor));
  ESKER_ASSIGN_OR_RETURN(Packet packet, greeting.socket.Receive(deadline.time()));
  v1::LocalAnswer answer;
  if (!answer.ParseFromString(packet.bytes)) {
    return absl::InternalError(StrCat(where.path(), ": what came is no answer to a hello"));
  }
  if (answer.has_failed()) return Annotate(ToStatus(answer.failed()), where.path());
  if (!answer.has_welcome()) return absl::InternalError(StrCat(where.path(), ": expected a welcome"));
  greeting.welcome = answer.welcome();
  greeting.descriptor = std::move(packet.descriptor);
  return greeting;
}

absl::StatusOr<v1::LocalAnswer> ReceiveAnswer(const UnixSocket& socket, const Deadline& deadline) {
  ESKER_ASSIGN_OR_RETURN(const Packet packet, socket.Receive(deadline.time()));
  v1::LocalAnswer answer;
  if (answer.ParseFromString(packet.bytes)) return answer;
  return absl::InternalError("what came over the server's Unix socket is no answer");
}

absl::Status ToStatus(const v1::LocalFailure& failure) {
  const auto code = static_cast<absl::StatusCode>(failure.code());
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code, failure.message());
}

void TellWhyGrpc(Connection* connection, const absl::Status& why) {
  if (!connection->IsFirstToTellWhyGrpc()) return;
  Log(StrCat("payload goes through gRPC, not through shared memory: ", MessageOf(why)));
}

bool IsForGood(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
      return true;
    default:
      return false;
  }
}

}  // namespace esker
