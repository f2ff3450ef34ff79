// WaitSave: thousands of ranks wait at a time, and no thread waits with them.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>

#include "format/proto/service.pb.h"
#include "server/rpc/backend.h"
#include "server/rpc/call_watch.h"

namespace esker {

// Ends with whatever comes first: the coordinator's answer, the client's going away, or the server's stop.
// Destroys itself when gRPC is done with it.
class WaitSaveCall final : public grpc::ServerUnaryReactor, public WatchedCall {
 public:
  WaitSaveCall(RpcBackend* backend, const v1::WaitSaveRequest& request, v1::SaveStatus* response);

  void OnCancel() override;
  void OnDone() override;
  void OnTick(int64_t now_ms, bool draining) override;

 private:
  // What the coordinator's callback holds: it may come long after the call has ended.
  struct Line {
    Mutex mu;
    WaitSaveCall* call ABSL_GUARDED_BY(mu) = nullptr;  // null once it was answered
  };
  static void Answer(Line* line, const absl::StatusOr<v1::SaveStatus>& answer);

  RpcBackend* const backend_;
  v1::SaveStatus* const response_;
  const std::shared_ptr<Line> line_;
};

}  // namespace esker
