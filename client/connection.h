// The way to one server: its channels, how long a call may take, and trying again.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/backoff.h"
#include "client/deadline.h"
#include "client/rpc_status.h"
#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/proto/service.grpc.pb.h"
#include "grpcpp/channel.h"

namespace esker {

// The longest request that a server takes (docs/protocol.md).
inline constexpr uint64_t kMaxRequestBytes = 64 << 20;

// How a save is spread over streams. gRPC (1.51) lets little more than one message of a stream be on its way
// at a time: on a long way larger messages keep it full, and then more streams.
struct SendPlan {
  size_t streams = 1;       // at least as many as threads
  uint64_t body_bytes = 0;  // of a message
};
// For one of `clients` that send to one server at the same time, each with `threads`.
SendPlan SendPlanFor(std::chrono::microseconds round_trip, size_t threads, uint32_t clients);

// Thread-safe. Connects at the first call. Each channel is a TCP connection of its own; a peer that hangs is
// noticed within 20 s (keepalive), and then fails what is under way with kUnavailable.
class Connection {
 public:
  // kInvalidArgument unless `server` is "host:port".
  static absl::StatusOr<std::shared_ptr<Connection>> Make(const std::string& server);

  const std::string& server() const { return server_; }

  // One try of a unary RPC. The error says which server and call.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(std::string_view name,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request, const Deadline& deadline) {
    std::shared_ptr<Stub> stub = GetStub(static_cast<Stub*>(nullptr));
    grpc::ClientContext context;
    context.set_deadline(deadline.ForGrpc());
    Response response;
    const auto begin = std::chrono::steady_clock::now();
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (status.ok()) Took(std::chrono::steady_clock::now() - begin);
    if (!status.ok()) return FromGrpc(status, server_, name);
    return response;
  }

  // Tries again while the server is not reached, until the deadline.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> CallUntil(std::string_view name,
                                     grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                  Response*),
                                     const Request& request, const Deadline& deadline) {
    Backoff backoff;
    absl::Status why;
    while (true) {
      absl::StatusOr<Response> response = Call(name, method, request, deadline);
      if (response.ok() || RetryOf(response.status()) != Retry::kAlways) return response;
      // The last try is often cut short by the deadline, and then says less than the one before.
      if (why.ok() || absl::IsUnavailable(response.status())) why = response.status();
      if (deadline.Passed()) return GaveUp(why);
      ResetControl();
      backoff.Sleep(deadline);
    }
  }

  // Makes a few calls that do nothing, unless the server is known to be near: so that round_trip() is known
  // better.
  void MeasureRoundTrip(const Deadline& deadline);
  // The shortest that a call took so far; 0 if there was none.
  std::chrono::microseconds round_trip() const { return std::chrono::microseconds(round_trip_us_); }

  // For the raw streams; `index` tells connections apart. Made when first asked for.
  std::shared_ptr<grpc::Channel> DataChannel(size_t index);
  // The channel that Call uses: for streams of few bytes.
  std::shared_ptr<grpc::Channel> ControlChannel();
  // For calls that Call can't make.
  std::shared_ptr<v1::Store::Stub> store_stub() { return GetStub(static_cast<v1::Store::Stub*>(nullptr)); }

  // Forgets the channels, so that what follows connects anew at once. Calls and streams under way keep
  // theirs until they end; a channel without any is closed, whatever its peer does.
  void Reset();
  void ResetControl();
  void ResetData(size_t index);

  // True once: for what is to be logged once for each Checkpointer or Reader, which have one connection each.
  bool IsFirstToTellWhyGrpc() { return !told_why_grpc_.exchange(true); }

 private:
  explicit Connection(std::string server) : server_(std::move(server)) {}

  void Took(std::chrono::steady_clock::duration duration);
  void EnsureControl() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::shared_ptr<v1::Coordinator::Stub> GetStub(v1::Coordinator::Stub*);
  std::shared_ptr<v1::Store::Stub> GetStub(v1::Store::Stub*);
  // An unreachable server's error as kUnavailable, with what to check.
  static absl::Status GaveUp(const absl::Status& why);

  const std::string server_;
  std::atomic<bool> told_why_grpc_ = false;
  std::atomic<int64_t> round_trip_us_ = 0;

  Mutex mu_;
  std::shared_ptr<grpc::Channel> control_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<v1::Coordinator::Stub> coordinator_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<v1::Store::Stub> store_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<grpc::Channel>> data_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
