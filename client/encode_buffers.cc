#include "client/encode_buffers.h"

#include <utility>

namespace esker {

std::shared_ptr<std::vector<std::byte>> EncodeBuffers::Take() {
  std::unique_ptr<std::vector<std::byte>> buffer;
  {
    MutexLock lock(&free_->mu);
    if (!free_->buffers.empty()) {
      buffer = std::move(free_->buffers.back());
      free_->buffers.pop_back();
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<std::vector<std::byte>>();
  const auto give_back = [free = std::weak_ptr<Free>(free_)](std::vector<std::byte>* returned) {
    std::unique_ptr<std::vector<std::byte>> owned(returned);
    if (const std::shared_ptr<Free> home = free.lock(); home != nullptr) {
      MutexLock lock(&home->mu);
      home->buffers.push_back(std::move(owned));
    }
  };
  return std::shared_ptr<std::vector<std::byte>>(buffer.release(), give_back);
}

}  // namespace esker
