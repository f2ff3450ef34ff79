#include "format/base/thread_pool.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <utility>

#include "format/base/status.h"

namespace esker {

ThreadPool::ThreadPool(int threads, const std::string& name, int niceness) {
  ESKER_CHECK(threads > 0);
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this, niceness] { Work(niceness); });
    pthread_setname_np(threads_.back().native_handle(), name.substr(0, 15).c_str());
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Schedule(std::function<void()> task) {
  MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
  // Under the lock: the task may be what somebody waits for before destroying this pool.
  wake_.NotifyOne();
}

void ThreadPool::Work(int niceness) {
  // Of this thread alone; refused or not, the tasks are run.
  if (niceness != 0) ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), niceness);
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty() && !stopping_) wake_.Wait(&mu_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace esker
