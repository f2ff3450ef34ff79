#include "server/rpc/coordinator_service.h"

#include "server/rpc/wait_save_call.h"

namespace esker {

grpc::ServerUnaryReactor* CoordinatorService::WaitSave(Context* /*context*/,
                                                       const v1::WaitSaveRequest* request,
                                                       v1::SaveStatus* response) {
  return new WaitSaveCall(backend_, *request, response);
}

}  // namespace esker
