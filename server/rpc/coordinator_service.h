// The Coordinator service (service.proto) over the Coordinator class.
#pragma once

#include "format/proto/service.grpc.pb.h"
#include "server/rpc/backend.h"

namespace esker {

class CoordinatorService final : public v1::Coordinator::CallbackService {
 public:
  explicit CoordinatorService(RpcBackend* backend) : backend_(backend) {}

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* OpenRun(Context* context, const v1::OpenRunRequest* request,
                   v1::OpenRunResponse* response) override {
    return Run(context, request, response, &Coordinator::OpenRun);
  }
  Reactor* BeginSave(Context* context, const v1::BeginSaveRequest* request,
                     v1::BeginSaveResponse* response) override {
    return Run(context, request, response, &Coordinator::BeginSave);
  }
  Reactor* ReportPart(Context* context, const v1::ReportPartRequest* request,
                      v1::ReportPartResponse* response) override {
    return Run(context, request, response, &Coordinator::ReportPart);
  }
  Reactor* WaitSave(Context* context, const v1::WaitSaveRequest* request, v1::SaveStatus* response) override;
  Reactor* AbortSave(Context* context, const v1::AbortSaveRequest* request,
                     v1::AbortSaveResponse* response) override {
    return Run(context, request, response, &Coordinator::AbortSave);
  }
  Reactor* ListRuns(Context* context, const v1::ListRunsRequest* request,
                    v1::ListRunsResponse* response) override {
    return Run(context, request, response, &Coordinator::ListRuns);
  }
  Reactor* ListCheckpoints(Context* context, const v1::ListCheckpointsRequest* request,
                           v1::ListCheckpointsResponse* response) override {
    return Run(context, request, response, &Coordinator::ListCheckpoints);
  }
  Reactor* GetCheckpoint(Context* context, const v1::GetCheckpointRequest* request,
                         v1::GetCheckpointResponse* response) override {
    return Run(context, request, response, &Coordinator::GetCheckpoint);
  }
  Reactor* DeleteCheckpoint(Context* context, const v1::DeleteCheckpointRequest* request,
                            v1::DeleteCheckpointResponse* response) override {
    return Run(context, request, response, &Coordinator::DeleteCheckpoint);
  }
  Reactor* PinCheckpoint(Context* context, const v1::PinCheckpointRequest* request,
                         v1::PinCheckpointResponse* response) override {
    return Run(context, request, response, &Coordinator::PinCheckpoint);
  }
  Reactor* SetRetention(Context* context, const v1::SetRetentionRequest* request,
                        v1::SetRetentionResponse* response) override {
    return Run(context, request, response, &Coordinator::SetRetention);
  }
  Reactor* CollectGarbage(Context* context, const v1::CollectGarbageRequest* request,
                          v1::CollectGarbageResponse* response) override {
    return Run(context, request, response, &Coordinator::CollectGarbage);
  }

 private:
  template <typename Request, typename Response>
  Reactor* Run(Context* context, const Request* request, Response* response,
               absl::StatusOr<Response> (Coordinator::*method)(const Request&)) {
    return backend_->unary.Run(context, request, response,
                               [coordinator = backend_->coordinator, method](const Request& given) {
                                 return (coordinator->*method)(given);
                               });
  }

  RpcBackend* const backend_;
};

}  // namespace esker
