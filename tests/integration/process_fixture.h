// Real processes for tests: eskerd (and others) as children that never outlive the test, however it ends.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace esker::testing {

// The path of a program of this build: the test's own folder holds all of them.
std::string ProgramPath(const std::string& name);
// A text to train on: the repository's license.
std::string SampleText();

// A child process. Not thread-safe; start it on a thread that lives as long as it (it is killed when that
// thread ends).
class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> command;                // the program's path first
    std::string log_path;                            // stdout and stderr are appended to it
    std::map<std::string, std::string> environment;  // on top of the test's own
    std::optional<uid_t> user;                       // run as this user (needs root)
  };
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const Options& options);
  // Kills it if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // A descriptor that becomes readable when the process has ended (pidfd).
  int end_event() const { return pidfd_; }
  bool Running() { return !WaitExit(std::chrono::milliseconds(0)).has_value(); }

  // Does nothing if it has ended.
  void Signal(int signal);
  // SIGSTOP, and waits until it stands still; SIGCONT lets it go on.
  void Freeze();
  // SIGKILL, and waits for the end.
  void Kill();
  // How it ended: the exit code, or 128 + signal; nothing if it still runs after `timeout`.
  std::optional<int> WaitExit(std::chrono::milliseconds timeout);

  // All that it has written so far.
  std::string Log() const;
  // Waits until its log contains `text`. kDeadlineExceeded, or kAborted if the process ended without it; both
  // show the log.
  absl::Status WaitForLog(const std::string& text, std::chrono::milliseconds timeout);

 private:
  ChildProcess(pid_t pid, int pidfd, std::string log_path);

  const pid_t pid_;
  const int pidfd_;
  const std::string log_path_;
  std::optional<int> exit_code_;
};

// An eskerd on a data directory. After Kill, Start runs it again on the same directory and port. Not
// thread-safe, but its address may be used from anywhere.
class ServerProcess {
 public:
  struct Options {
    std::string data_directory;
    std::string engine = "auto";
    // Small, so that tests are quick and segments roll over.
    uint64_t segment_mib = 16;
    uint64_t buffer_pool_mib = 32;
    uint64_t recycle_mib = 64;
    uint64_t min_free_mib = 16;
    std::string read_lease_ttl = "3s";
    std::string save_timeout = "60s";
    std::string gc_interval = "0s";  // only when asked
    std::optional<uid_t> user;
  };
  explicit ServerProcess(Options options);
  ~ServerProcess();

  // Returns when it takes connections. kAborted if it ended instead: the message has its log.
  absl::Status Start();
  // Starts it without waiting for anything; AwaitReady is the other half of Start.
  absl::Status Launch();
  absl::Status AwaitReady();
  // Whether the port file of the present start is there.
  bool Serving() const;
  // SIGKILL.
  void Kill();
  // SIGTERM, and waits for the end; returns the exit code, or nothing if it did not end in 20 s (then it is
  // killed).
  std::optional<int> Stop();

  ChildProcess* process() { return process_.get(); }
  // "127.0.0.1:PORT", known after the first start.
  const std::string& address() const { return address_; }
  const std::string& data_directory() const { return options_.data_directory; }
  std::string Log() const;
  // The options of the next start.
  Options& options() { return options_; }

 private:
  std::vector<std::string> Command() const;

  Options options_;
  std::string scratch_;  // port file and log: next to the data directory
  std::string address_;
  std::unique_ptr<ChildProcess> process_;
};

// Bytes of memory that a process holds now (VmRSS).
uint64_t ResidentBytes(pid_t pid);
// Bytes of disk that all files under `directory` take (st_blocks).
uint64_t DiskBytes(const std::string& directory);

}  // namespace esker::testing
