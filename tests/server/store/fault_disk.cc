#include "tests/server/store/fault_disk.h"

#include <utility>

#include "format/base/status.h"

namespace esker::testing {

void DiskFaults::SetHook(Hook hook) {
  MutexLock lock(&mu_);
  hook_ = std::move(hook);
}

void DiskFaults::FailNext(DiskOp op, int count, absl::Status status) {
  MutexLock lock(&mu_);
  failures_[op] = {count, std::move(status)};
}

void DiskFaults::TearNextWrite() {
  MutexLock lock(&mu_);
  tear_ = true;
}

bool DiskFaults::TakeTear() {
  MutexLock lock(&mu_);
  return std::exchange(tear_, false);
}

void DiskFaults::HoldWrites() {
  MutexLock lock(&mu_);
  hold_ = true;
}

void DiskFaults::AwaitHeldWrites(size_t count) {
  MutexLock lock(&mu_);
  while (held_.size() < count) held_changed_.Wait(&mu_);
}

void DiskFaults::ReleaseWrites() {
  std::vector<std::function<void()>> ends;
  {
    MutexLock lock(&mu_);
    hold_ = false;
    ends = std::exchange(held_, {});
  }
  for (const auto& end : ends) end();
}

void DiskFaults::EndWrite(std::function<void()> end) {
  {
    MutexLock lock(&mu_);
    if (hold_) {
      held_.push_back(std::move(end));
      held_changed_.NotifyAll();
      return;
    }
  }
  end();
}

void DiskFaults::SetAvailable(uint64_t bytes) {
  MutexLock lock(&mu_);
  available_bytes_ = bytes;
}

absl::StatusOr<DiskSpace> DiskFaults::Space(absl::StatusOr<DiskSpace> real) const {
  MutexLock lock(&mu_);
  if (real.ok() && available_bytes_ != UINT64_MAX) real->available_bytes = available_bytes_;
  return real;
}

uint64_t DiskFaults::count(DiskOp op) const {
  MutexLock lock(&mu_);
  const auto it = counts_.find(op);
  return it == counts_.end() ? 0 : it->second;
}

absl::Status DiskFaults::Before(DiskOp op, const std::string& file, uint64_t offset) {
  Hook hook;
  DiskEvent event{op, file, offset};
  absl::Status failure;
  {
    MutexLock lock(&mu_);
    event.number = ++counts_[op];
    hook = hook_;
    if (auto it = failures_.find(op); it != failures_.end() && it->second.first > 0) {
      --it->second.first;
      failure = it->second.second;
    }
  }
  if (hook) ESKER_RETURN_IF_ERROR(hook(event));
  return failure;
}

class FaultFile final : public DiskFile {
 public:
  FaultFile(std::unique_ptr<DiskFile> real, DiskFaults* faults) : real_(std::move(real)), faults_(faults) {}

  void ReadAsync(uint64_t offset, MutableBytes to, Callback done) override {
    if (absl::Status status = faults_->Before(DiskOp::kRead, name(), offset); !status.ok())
      return done(status);
    real_->ReadAsync(offset, to, std::move(done));
  }

  void WriteAsync(uint64_t offset, ByteView from, Callback done) override {
    DiskFaults* const faults = faults_;
    auto end = [faults, done = std::move(done)](const absl::Status& status) {
      faults->EndWrite([done, status] { done(status); });
    };
    if (absl::Status status = faults_->Before(DiskOp::kWrite, name(), offset); !status.ok())
      return end(status);
    if (faults_->TakeTear()) {
      const uint64_t half = from.size() / 2 / kBlockBytes * kBlockBytes;
      real_->WriteAsync(offset, from.first(half),
                        [end](const absl::Status&) { end(absl::DataLossError("the test tore this write")); });
      return;
    }
    real_->WriteAsync(offset, from, end);
  }

  absl::Status Sync() override {
    ESKER_RETURN_IF_ERROR(faults_->Before(DiskOp::kSync, name(), 0));
    return real_->Sync();
  }
  absl::Status Allocate(uint64_t bytes) override {
    ESKER_RETURN_IF_ERROR(faults_->Before(DiskOp::kAllocate, name(), 0));
    return real_->Allocate(bytes);
  }
  absl::Status PunchHole(uint64_t offset, uint64_t bytes) override {
    ESKER_RETURN_IF_ERROR(faults_->Before(DiskOp::kPunch, name(), offset));
    return real_->PunchHole(offset, bytes);
  }
  absl::StatusOr<uint64_t> Size() const override { return real_->Size(); }
  absl::StatusOr<uint64_t> AllocatedBytes() const override { return real_->AllocatedBytes(); }
  const std::string& name() const override { return real_->name(); }

 private:
  const std::unique_ptr<DiskFile> real_;
  DiskFaults* const faults_;
};

class FaultDisk final : public Disk {
 public:
  FaultDisk(std::unique_ptr<Disk> real, DiskFaults* faults) : real_(std::move(real)), faults_(faults) {}

  absl::StatusOr<std::unique_ptr<DiskFile>> Open(std::string_view name, OpenMode mode) override {
    const DiskOp op = mode == OpenMode::kCreateNew ? DiskOp::kCreate : DiskOp::kOpen;
    ESKER_RETURN_IF_ERROR(faults_->Before(op, std::string(name), 0));
    ESKER_ASSIGN_OR_RETURN(std::unique_ptr<DiskFile> real, real_->Open(name, mode));
    return std::make_unique<FaultFile>(std::move(real), faults_);
  }
  absl::Status Remove(std::string_view name) override {
    ESKER_RETURN_IF_ERROR(faults_->Before(DiskOp::kRemove, std::string(name), 0));
    return real_->Remove(name);
  }
  absl::StatusOr<std::vector<std::string>> List() const override { return real_->List(); }
  absl::Status SyncDirectory() override {
    ESKER_RETURN_IF_ERROR(faults_->Before(DiskOp::kSyncDirectory, "", 0));
    return real_->SyncDirectory();
  }
  absl::StatusOr<DiskSpace> Space() const override { return faults_->Space(real_->Space()); }
  void RegisterMemory(MutableBytes memory) override { real_->RegisterMemory(memory); }
  std::string Describe() const override { return real_->Describe(); }

 private:
  const std::unique_ptr<Disk> real_;
  DiskFaults* const faults_;
};

std::unique_ptr<Disk> MakeFaultDisk(std::unique_ptr<Disk> real, DiskFaults* faults) {
  return std::make_unique<FaultDisk>(std::move(real), faults);
}

}  // namespace esker::testing
