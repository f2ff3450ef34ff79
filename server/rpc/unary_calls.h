// Runs the handlers of unary calls on a thread pool, so that work that blocks never holds up gRPC's own
// threads.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"
#include "format/base/thread_pool.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/rpc_options.h"

namespace esker {

// Thread-safe. Holds at most max_pending_calls calls with max_pending_request_bytes of requests; further ones
// are answered with kUnavailable at once.
class UnaryCalls {
 public:
  // Both must outlive every call.
  UnaryCalls(const RpcOptions* options, ThreadPool* pool) : options_(*options), pool_(pool) {}

  // `handler`: absl::StatusOr<Response>(const Request&). It is not run if the call was cancelled or its
  // deadline passed before its turn came.
  template <typename Request, typename Response, typename Handler>
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const Request* request,
                                Response* response, Handler handler) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const uint64_t bytes = request->ByteSizeLong();
    if (const absl::Status admitted = Enter(bytes); !admitted.ok()) {
      reactor->Finish(ToGrpcStatus(admitted));
      return reactor;
    }
    pool_->Schedule([this, context, request, response, reactor, bytes, handler = std::move(handler)] {
      absl::Status status = CheckStillWanted(*context);
      if (status.ok()) {
        absl::StatusOr<Response> answer = handler(*request);
        status = answer.status();
        if (answer.ok()) *response = *std::move(answer);
      }
      Leave(bytes);
      reactor->Finish(ToGrpcStatus(status));
    });
    return reactor;
  }

 private:
  absl::Status Enter(uint64_t request_bytes);
  void Leave(uint64_t request_bytes);
  static absl::Status CheckStillWanted(const grpc::CallbackServerContext& context);

  const RpcOptions& options_;
  ThreadPool* const pool_;

  Mutex mu_;
  uint64_t pending_calls_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace esker
