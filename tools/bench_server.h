// The server that `esker bench` starts for itself: a process with a temporary directory, both gone at the
// end.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "format/base/mutex.h"

namespace esker {

// Thread-safe.
class BenchServer {
 public:
  // Runs the `eskerd` that lies beside this program, on a free port of the loopback, with its data in a new
  // directory below `directory`. Returns when it serves. An error has the server's last words in it.
  absl::Status Start(const std::string& directory);
  // Stop().
  ~BenchServer() { Stop(); }

  // "127.0.0.1:PORT"; once started.
  std::string address();
  std::string data_directory();

  // Kills it and removes its directory. From any thread, at any time; a Start under way fails then.
  void Stop();

 private:
  absl::Status Launch(const std::string& directory);
  // Empty as long as the port is not known.
  absl::StatusOr<std::string> PollPort();

  Mutex mu_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  pid_t pid_ ABSL_GUARDED_BY(mu_) = -1;
  std::string scratch_ ABSL_GUARDED_BY(mu_);  // holds data/, port, log
  std::string address_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker
