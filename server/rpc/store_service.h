// The Store service (service.proto) over the Store class.
#pragma once

#include "format/proto/service.grpc.pb.h"
#include "server/rpc/backend.h"

namespace esker {

// All but the raw streams as callback methods; these as raw ones, which get messages as they come, without
// protobuf.
using StoreServiceBase = v1::Store::WithCallbackMethod_OfferChunks<
    v1::Store::WithRawCallbackMethod_PutChunks<v1::Store::WithCallbackMethod_SealPart<
        v1::Store::WithCallbackMethod_OpenRead<v1::Store::WithCallbackMethod_RenewRead<
            v1::Store::WithCallbackMethod_CloseRead<v1::Store::WithCallbackMethod_GetParts<
                v1::Store::WithCallbackMethod_GetLayouts<v1::Store::WithRawCallbackMethod_GetChunks<
                    v1::Store::WithCallbackMethod_VerifyParts<v1::Store::WithCallbackMethod_GetLocalSocket<
                        v1::Store::WithCallbackMethod_Status<v1::Store::Service>>>>>>>>>>>>;

class StoreService final : public StoreServiceBase {
 public:
  explicit StoreService(RpcBackend* backend) : backend_(backend) {}

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;
  using RawReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

  Reactor* OfferChunks(Context* context, const v1::OfferChunksRequest* request,
                       v1::OfferChunksResponse* response) override {
    return Run(context, request, response, &StoreService::DoOfferChunks);
  }
  RawReactor* PutChunks(Context* context) override;
  Reactor* SealPart(Context* context, const v1::SealPartRequest* request,
                    v1::SealPartResponse* response) override {
    return Run(context, request, response, &StoreService::DoSealPart);
  }
  Reactor* OpenRead(Context* context, const v1::OpenReadRequest* request,
                    v1::OpenReadResponse* response) override {
    return Run(context, request, response, &StoreService::DoOpenRead);
  }
  Reactor* RenewRead(Context* context, const v1::RenewReadRequest* request,
                     v1::RenewReadResponse* response) override {
    return Run(context, request, response, &StoreService::DoRenewRead);
  }
  Reactor* CloseRead(Context* context, const v1::CloseReadRequest* request,
                     v1::CloseReadResponse* response) override {
    return Run(context, request, response, &StoreService::DoCloseRead);
  }
  Reactor* GetParts(Context* context, const v1::GetPartsRequest* request,
                    v1::GetPartsResponse* response) override {
    return Run(context, request, response, &StoreService::DoGetParts);
  }
  Reactor* GetLayouts(Context* context, const v1::GetLayoutsRequest* request,
                      v1::GetLayoutsResponse* response) override {
    return Run(context, request, response, &StoreService::DoGetLayouts);
  }
  RawReactor* GetChunks(Context* context) override;
  grpc::ServerWriteReactor<v1::VerifyPartsProgress>* VerifyParts(
      Context* context, const v1::VerifyPartsRequest* request) override;
  Reactor* GetLocalSocket(Context* context, const v1::LocalSocketRequest* request,
                          v1::LocalSocketResponse* response) override {
    return Run(context, request, response, &StoreService::DoGetLocalSocket);
  }
  Reactor* Status(Context* context, const v1::StatusRequest* request, v1::StatusResponse* response) override {
    return Run(context, request, response, &StoreService::DoStatus);
  }

 private:
  absl::StatusOr<v1::OfferChunksResponse> DoOfferChunks(const v1::OfferChunksRequest& request);
  absl::StatusOr<v1::SealPartResponse> DoSealPart(const v1::SealPartRequest& request);
  absl::StatusOr<v1::OpenReadResponse> DoOpenRead(const v1::OpenReadRequest& request);
  absl::StatusOr<v1::RenewReadResponse> DoRenewRead(const v1::RenewReadRequest& request);
  absl::StatusOr<v1::CloseReadResponse> DoCloseRead(const v1::CloseReadRequest& request);
  absl::StatusOr<v1::GetPartsResponse> DoGetParts(const v1::GetPartsRequest& request);
  absl::StatusOr<v1::GetLayoutsResponse> DoGetLayouts(const v1::GetLayoutsRequest& request);
  absl::StatusOr<v1::LocalSocketResponse> DoGetLocalSocket(const v1::LocalSocketRequest& request);
  absl::StatusOr<v1::StatusResponse> DoStatus(const v1::StatusRequest& request);

  template <typename Request, typename Response>
  Reactor* Run(Context* context, const Request* request, Response* response,
               absl::StatusOr<Response> (StoreService::*method)(const Request&)) {
    return backend_->unary.Run(context, request, response,
                               [this, method](const Request& given) { return (this->*method)(given); });
  }

  RpcBackend* const backend_;
};

}  // namespace esker
