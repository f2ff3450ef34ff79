// Between gRPC's byte buffers and the frames of format/frame.h.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/proto/service.pb.h"
#include "server/store/store.h"

namespace esker {

// A copy of a message that should be anything but a body. kInvalidArgument if it is longer than such a frame
// can be.
absl::StatusOr<std::string> FlattenControlFrame(grpc::ByteBuffer* message);

// Calls `take` for each piece of the message, in order, without a copy.
absl::Status ForEachSlice(grpc::ByteBuffer* message, const std::function<void(ByteView)>& take);

grpc::ByteBuffer ToByteBuffer(const std::string& frame);

PartRef ToPartRef(const v1::SaveContext& save);

}  // namespace esker
