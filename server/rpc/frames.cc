#include "server/rpc/frames.h"

#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/frame.h"

namespace esker {
namespace {

ByteView ViewOf(const grpc::Slice& slice) {
  return {reinterpret_cast<const std::byte*>(slice.begin()), slice.size()};
}

}  // namespace

absl::Status ForEachSlice(grpc::ByteBuffer* message, const std::function<void(ByteView)>& take) {
  std::vector<grpc::Slice> slices;
  if (const grpc::Status dumped = message->Dump(&slices); !dumped.ok()) {
    return absl::InvalidArgumentError(StrCat("the message can't be read: ", dumped.error_message()));
  }
  for (const grpc::Slice& slice : slices) take(ViewOf(slice));
  return absl::OkStatus();
}

absl::StatusOr<std::string> FlattenControlFrame(grpc::ByteBuffer* message) {
  const uint64_t length = message->Length();
  if (length > kMaxControlFrameBytes) {
    return absl::InvalidArgumentError(StrCat("found a message of ", length,
                                             " bytes where a frame of at most ", kMaxControlFrameBytes,
                                             " should be"));
  }
  std::string frame;
  frame.reserve(length);
  ESKER_RETURN_IF_ERROR(ForEachSlice(message, [&frame](ByteView slice) { frame.append(AsText(slice)); }));
  return frame;
}

grpc::ByteBuffer ToByteBuffer(const std::string& frame) {
  const grpc::Slice slice(frame);
  return grpc::ByteBuffer(&slice, 1);
}

PartRef ToPartRef(const v1::SaveContext& save) {
  return {.save = {.run = save.run(), .step = save.step(), .save_id = save.save_id()},
          .attempt = save.attempt(),
          .rank = save.rank()};
}

}  // namespace esker
