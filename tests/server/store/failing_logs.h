// RocksDB on the machine's file system, but writes and syncs of its logs fail on demand.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "rocksdb/env.h"
#include "rocksdb/file_system.h"

namespace esker::testing {

class FailingLogs final : public rocksdb::FileSystemWrapper {
 public:
  FailingLogs() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FailingLogs"; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok() && name.ends_with(".log")) *file = std::make_unique<LogFile>(this, std::move(*file));
    return status;
  }

  std::atomic<bool> no_space = false;
  std::atomic<bool> fail_syncs = false;

 private:
  class LogFile final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    LogFile(FailingLogs* owner, std::unique_ptr<rocksdb::FSWritableFile> file)
        : FSWritableFileOwnerWrapper(std::move(file)), owner_(owner) {}
    using FSWritableFileOwnerWrapper::Append;
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
      if (owner_->no_space) return rocksdb::IOStatus::NoSpace("the test took the space");
      return FSWritableFileOwnerWrapper::Append(data, options, context);
    }
    // The record is in the log all the same, as after a failed fsync of a disk that works again.
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
      const rocksdb::IOStatus status = FSWritableFileOwnerWrapper::Sync(options, context);
      if (owner_->fail_syncs) return rocksdb::IOStatus::IOError("the test broke the fsync");
      return status;
    }

   private:
    FailingLogs* const owner_;
  };
};

}  // namespace esker::testing
