// Reaching a server that is on this host by its Unix socket.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/deadline.h"
#include "format/base/unix_socket.h"
#include "format/proto/local.pb.h"

namespace esker {

// The path of the server's socket for clients on its host, which was tried. Errors say why there is none for
// this process: kNotFound (the path does not lead to a socket here: another host, or a container that does
// not see the server's directory), kPermissionDenied (it is another user's), kUnimplemented (an older server,
// or one without a socket), or those of a call.
absl::StatusOr<std::string> FindLocalSocket(Connection* connection, const Deadline& deadline);

// Connects to the socket, passes `hello` (in which the token is filled in) with a copy of `descriptor` (-1:
// none), and waits for the answer. Errors: those of FindLocalSocket; kFailedPrecondition (it is another
// server's), kUnavailable (nobody serves it any more), kDeadlineExceeded, or what else the server says.
struct LocalGreeting {
  UnixSocket socket;
  v1::LocalWelcome welcome;
  UniqueFd descriptor;  // if one came with the welcome
};
absl::StatusOr<LocalGreeting> GreetLocally(Connection* connection, v1::LocalHello hello, int descriptor,
                                           const Deadline& deadline);

// The next answer on the socket. kInternal if it is none; otherwise as UnixSocket::Receive.
absl::StatusOr<v1::LocalAnswer> ReceiveAnswer(const UnixSocket& socket, const Deadline& deadline);
// What a failure in an answer says.
absl::Status ToStatus(const v1::LocalFailure& failure);

// Logs why payload goes through gRPC although shared memory was tried: once for each connection. To be called
// when it does: a server that is gone is no matter of the way to it.
void TellWhyGrpc(Connection* connection, const absl::Status& why);

// Whether another try, on the same connection or a new one, would only find the same: this process and the
// server can't share memory, now or later.
bool IsForGood(const absl::Status& status);

}  // namespace esker
