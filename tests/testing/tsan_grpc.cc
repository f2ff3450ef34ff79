// Shows ThreadSanitizer how gRPC hands work from thread to thread. Debian's gRPC is built without the
// sanitizer, which therefore does not see the atomics and locks that order "an operation was started" before
// "its completion is delivered", and takes every object that crosses a thread inside gRPC for a data race.
// The functions here stand in front of gRPC's own (the program's symbols win over the libraries'), mark that
// order, and call the original.
//
// Linked into every program that uses gRPC, in the tsan build only.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>

extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

namespace {

// What gRPC's own threads allocate reaches others with a completion, too.
char allocations;

void* Allocated(void* memory) {
  __tsan_release(&allocations);
  return memory;
}

grpc_event Delivered(grpc_event event) {
  if (event.type == GRPC_OP_COMPLETE) {
    __tsan_acquire(event.tag);
    __tsan_acquire(&allocations);
  }
  return event;
}

// A slice's memory: whoever drops the last reference destroys what another thread has made.
struct Owned {
  void (*destroy)(void*);
  void* data;
};

void Destroy(void* memory) {
  __tsan_acquire(memory);
  auto* const owned = static_cast<Owned*>(memory);
  owned->destroy(owned->data);
  delete owned;
}

template <typename Function>
Function* Original(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static auto* const original = Original<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return original(call, ops, count, tag, reserved);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static auto* const original = Original<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  return Delivered(original(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline,
                                       void* reserved) {
  static auto* const original =
      Original<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  grpc_event event = original(queue, tag, deadline, reserved);
  event.tag = tag;
  return Delivered(event);
}

void* gpr_malloc(size_t size) {
  static auto* const original = Original<decltype(gpr_malloc)>("gpr_malloc");
  return Allocated(original(size));
}

void* gpr_zalloc(size_t size) {
  static auto* const original = Original<decltype(gpr_zalloc)>("gpr_zalloc");
  return Allocated(original(size));
}

void* gpr_malloc_aligned(size_t size, size_t alignment) {
  static auto* const original = Original<decltype(gpr_malloc_aligned)>("gpr_malloc_aligned");
  return Allocated(original(size, alignment));
}

// The last thing in the constructor of what the server makes, ahead of time, for each call to come.
void grpc_metadata_array_init(grpc_metadata_array* array) {
  static auto* const original = Original<decltype(grpc_metadata_array_init)>("grpc_metadata_array_init");
  original(array);
  __tsan_release(&allocations);
}

grpc_slice grpc_slice_new_with_user_data(void* bytes, size_t size, void (*destroy)(void*), void* data) {
  static auto* const original =
      Original<decltype(grpc_slice_new_with_user_data)>("grpc_slice_new_with_user_data");
  auto* const owned = new Owned{destroy, data};
  __tsan_release(owned);
  return original(bytes, size, Destroy, owned);
}

}  // extern "C"
