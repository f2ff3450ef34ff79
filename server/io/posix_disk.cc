#include "server/io/posix_disk.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker {
namespace {

// Below what the kernel moves at once (2 GiB less a page).
constexpr uint64_t kMaxTransferBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxFileBytes = std::numeric_limits<int64_t>::max();

constexpr int kAttemptsWithoutSleep = 8;
constexpr int kMaxAttemptsWithoutProgress = 1000;  // about a second

thread_local bool on_engine_thread = false;

class PosixDiskFile : public DiskFile {
 public:
  PosixDiskFile(IoEngine* engine, std::shared_ptr<PosixFile> file)
      : engine_(engine), file_(std::move(file)) {}

  void ReadAsync(uint64_t offset, MutableBytes to, Callback done) override {
    engine_->Submit(IoOp(file_, IoOp::Kind::kRead, offset, to, std::move(done)));
  }
  void WriteAsync(uint64_t offset, ByteView from, Callback done) override {
    // IoOp is one type for both directions; of a write it only reads the memory.
    const MutableBytes memory(const_cast<std::byte*>(from.data()), from.size());
    engine_->Submit(IoOp(file_, IoOp::Kind::kWrite, offset, memory, std::move(done)));
  }
  absl::Status Sync() override { return file_->Sync(); }
  absl::Status Allocate(uint64_t bytes) override { return file_->Allocate(bytes); }
  absl::Status PunchHole(uint64_t offset, uint64_t bytes) override { return file_->PunchHole(offset, bytes); }
  absl::StatusOr<uint64_t> Size() const override { return file_->Size(); }
  absl::StatusOr<uint64_t> AllocatedBytes() const override { return file_->AllocatedBytes(); }
  const std::string& name() const override { return file_->name(); }

 private:
  IoEngine* const engine_;
  const std::shared_ptr<PosixFile> file_;
};

class PosixDisk : public Disk {
 public:
  PosixDisk(std::unique_ptr<PosixDirectory> directory, std::unique_ptr<IoEngine> engine)
      : directory_(std::move(directory)), engine_(std::move(engine)) {}

  absl::StatusOr<std::unique_ptr<DiskFile>> Open(std::string_view name, OpenMode mode) override {
    ESKER_ASSIGN_OR_RETURN(std::shared_ptr<PosixFile> file, directory_->OpenFile(name, mode));
    return std::make_unique<PosixDiskFile>(engine_.get(), std::move(file));
  }
  absl::Status Remove(std::string_view name) override { return directory_->Remove(name); }
  absl::StatusOr<std::vector<std::string>> List() const override { return directory_->List(); }
  absl::Status SyncDirectory() override { return directory_->Sync(); }
  absl::StatusOr<DiskSpace> Space() const override { return directory_->Space(); }

  void RegisterMemory(MutableBytes memory) override {
    ESKER_CHECK(!memory_registered_.exchange(true));
    engine_->RegisterMemory(memory);
  }
  std::string Describe() const override {
    return engine_->Describe(directory_->direct_io() ? "O_DIRECT"
                                                     : "buffered: the file system refuses O_DIRECT");
  }

 private:
  const std::unique_ptr<PosixDirectory> directory_;
  const std::unique_ptr<IoEngine> engine_;
  std::atomic<bool> memory_registered_{false};
};

}  // namespace

IoOp::IoOp(std::shared_ptr<PosixFile> file, Kind kind, uint64_t offset, MutableBytes memory,
           DiskFile::Callback done)
    : file_(std::move(file)), kind_(kind), offset_(offset), memory_(memory), done_(std::move(done)) {
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  if (offset % kBlockBytes != 0 || memory.size() % kBlockBytes != 0 || address % kBlockBytes != 0) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        Describe(), ": expected offset, length and memory address to be multiples of ", kBlockBytes,
        ", found address 0x", absl::Hex(address), ": take memory from a BufferPool and round up"));
  } else if (offset > kMaxFileBytes || memory.size() > kMaxFileBytes - offset) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(Describe(), ": expected an end below 2^63, the largest file offset"));
  }
}

std::string IoOp::Describe() const {
  return absl::StrCat(kind_ == Kind::kRead ? "read" : "write", " of ", memory_.size(), " bytes at offset ",
                      offset_, " of ", file_->path());
}

MutableBytes IoOp::rest() const {
  const MutableBytes rest = memory_.subspan(moved_bytes_);
  return rest.first(std::min<uint64_t>(rest.size(), kMaxTransferBytes));
}

void IoOp::Account(int64_t result) {
  const bool refused = result == -EINTR || result == -EAGAIN;
  if (result < 0 && !refused) {
    status_ = ErrnoStatus(static_cast<int>(-result), Describe());
    return;
  }
  const uint64_t whole_blocks = refused ? 0 : static_cast<uint64_t>(result) / kBlockBytes * kBlockBytes;
  if (whole_blocks == 0) return AccountNoProgress(result);
  moved_bytes_ += whole_blocks;
  attempts_without_progress_ = 0;
}

void IoOp::AccountNoProgress(int64_t result) {
  if (kind_ == Kind::kRead && result >= 0) {
    const absl::StatusOr<uint64_t> size = file_->Size();
    if (!size.ok()) {
      status_ = size.status();
      return;
    }
    if (*size <= position() + static_cast<uint64_t>(result)) {
      status_ = absl::OutOfRangeError(absl::StrCat(Describe(), ": the file ends at ", *size,
                                                   ": read within it, or look for what cut it off"));
      return;
    }
  }
  ++attempts_without_progress_;
  if (attempts_without_progress_ >= kMaxAttemptsWithoutProgress) {
    status_ = absl::UnavailableError(absl::StrCat(
        Describe(), ": no progress after ", moved_bytes_, " bytes in ", attempts_without_progress_,
        " attempts, the last of which gave ", result, ": look into the kernel's log, then try again"));
    return;
  }
  if (attempts_without_progress_ > kAttemptsWithoutSleep) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void IoOp::Finish() {
  ESKER_CHECK(ended());
  file_.reset();
  const DiskFile::Callback done = std::exchange(done_, nullptr);
  done(std::move(status_));
}

bool OnEngineThread() { return on_engine_thread; }
void MarkEngineThread() { on_engine_thread = true; }

std::unique_ptr<Disk> MakePosixDisk(std::unique_ptr<PosixDirectory> directory,
                                    std::unique_ptr<IoEngine> engine) {
  return std::make_unique<PosixDisk>(std::move(directory), std::move(engine));
}

}  // namespace esker
