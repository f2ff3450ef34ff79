#include "esker/reader.h"

#include <utility>

#include "client/checkpoint_access.h"
#include "client/connection.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {

class Reader::Impl {
 public:
  Impl(const ReaderOptions& options, std::shared_ptr<Connection> connection)
      : options_(options), connection_(std::move(connection)) {}

  CheckpointAccess Access(const std::string& run) const {
    return {connection_,       run, /*likely_rank=*/0, options_.connect_timeout_ms, options_.threads,
            options_.transport};
  }

 private:
  const ReaderOptions options_;
  const std::shared_ptr<Connection> connection_;
};

absl::StatusOr<std::unique_ptr<Reader>> Reader::Open(const ReaderOptions& options) {
  if (options.threads < 0) {
    return absl::InvalidArgumentError(
        StrCat("threads ", options.threads, ": expected 0 (automatic) or more"));
  }
  ESKER_ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection, Connection::Make(options.server));
  return std::unique_ptr<Reader>(new Reader(std::make_unique<Impl>(options, std::move(connection))));
}

Reader::Reader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Reader::~Reader() = default;

absl::StatusOr<std::vector<CheckpointInfo>> Reader::List(const std::string& run) {
  return ListCheckpoints(impl_->Access(run));
}

absl::StatusOr<std::unique_ptr<CheckpointReader>> Reader::OpenCheckpoint(const std::string& run,
                                                                         std::optional<uint64_t> step) {
  return OpenCheckpointReader(impl_->Access(run), step);
}

}  // namespace esker
