#include "server/rpc/listen_address.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <memory>

#include "format/base/text.h"
#include "format/names.h"

namespace esker {
namespace {

absl::Status Malformed(std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(StrCat("'", Printable(text), "' is no address to listen on: ", why,
                                           "; write HOST:PORT, such as 127.0.0.1:7070 or [::]:7070"));
}

std::string Join(const ListenAddress& address) {
  const bool v6 = address.host.find(':') != std::string::npos;
  return v6 ? StrCat("[", address.host, "]:", address.port) : StrCat(address.host, ":", address.port);
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

// 0, or the errno of binding a socket to it.
int TryToBind(const addrinfo& address) {
  const int fd = ::socket(address.ai_family, address.ai_socktype, address.ai_protocol);
  if (fd < 0) return errno;
  const int on = 1;
  (void)::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool bound = ::bind(fd, address.ai_addr, address.ai_addrlen) == 0 && ::listen(fd, 1) == 0;
  const int error = bound ? 0 : errno;
  ::close(fd);
  return error;
}

std::string LikelyReason(int error) {
  switch (error) {
    case EADDRINUSE:
      return "another process listens there, perhaps another eskerd; stop it or choose another port with "
             "--listen";
    case EACCES:
      return "ports below 1024 need a privilege; choose a higher one with --listen";
    case EADDRNOTAVAIL:
      return "this machine has no such address; choose one of its own with --listen, or 0.0.0.0 for all";
    default:
      return "choose another address with --listen";
  }
}

}  // namespace

absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return Malformed(text, "the port is missing");
  std::string_view host = text.substr(0, colon);
  const std::string_view port_text = text.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return Malformed(text, "an IPv6 address stands in brackets");
  }
  if (host.empty()) return Malformed(text, "the host is missing");
  int port = 0;
  const char* const end = port_text.data() + port_text.size();
  const auto [rest, error] = std::from_chars(port_text.data(), end, port);
  if (error != std::errc() || rest != end || port < 0 || port > 65535) {
    return Malformed(text, "the port is no number from 0 to 65535");
  }
  return ListenAddress{.host = std::string(host), .port = port};
}

std::string AddressForClients(const ListenAddress& address) {
  ListenAddress reached = address;
  if (address.host == "0.0.0.0" || address.host == "::" || address.host == "*") {
    char name[256] = {};
    reached.host = ::gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
  }
  return Join(reached);
}

absl::Status ExplainListenFailure(const ListenAddress& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int unresolved =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  const std::string where = StrCat("can't listen on ", Join(address), ": ");
  if (unresolved != 0) {
    return absl::UnavailableError(StrCat(where, "the host is unknown (", ::gai_strerror(unresolved),
                                         "); choose one of this machine's addresses with --listen"));
  }
  const AddressList list(found, &::freeaddrinfo);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (const int error = TryToBind(*each); error != 0) {
      return absl::UnavailableError(StrCat(where, ::strerror(error), "; ", LikelyReason(error)));
    }
  }
  return absl::UnavailableError(StrCat(where, "gRPC refused it, but it is free now; try again"));
}

}  // namespace esker
