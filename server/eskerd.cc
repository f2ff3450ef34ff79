// The storage server's daemon: reads the configuration, opens a Server, and waits for the signal to stop.
#include <errno.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "format/base/status.h"
#include "format/base/text.h"
#include "server/address_file.h"
#include "server/config.h"
#include "server/server.h"
#include "server/users_watch.h"

namespace esker {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
constexpr std::chrono::seconds kDrain{10};

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "eskerd: %s\n", std::string(MessageOf(status)).c_str());
  return exit_code;
}

// gRPC would write to stderr itself, at length, what the server reports in one line.
void LogFromGrpc(gpr_log_func_args* args) {
  spdlog::debug("grpc: {} ({}:{})", args->message, args->file, args->line);
}

void StartLogging(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("eskerd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  spdlog::set_level(spdlog::level::from_str(level));
  spdlog::flush_on(spdlog::level::trace);
  gpr_set_log_function(LogFromGrpc);
}

// Each client is a connection, and the usual soft limit is 1024.
void RaiseFileLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    spdlog::warn("can't raise the limit of open files: {}", ::strerror(errno));
  }
}

// gRPC allocates and frees a buffer for each message. By default the allocator gives such memory back to the
// kernel and takes it anew, page by page, which costs more than the copy into it; and it grows a heap for
// each thread.
void KeepFreedMemory() {
  ::mallopt(M_ARENA_MAX, 4);
  ::mallopt(M_MMAP_THRESHOLD, 8 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

// SIGTERM and SIGINT, blocked in every thread and taken by Wait.
class StopSignal {
 public:
  StopSignal() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
  }
  // From then on a second signal ends the process at once.
  const char* Wait() {
    int signal = 0;
    while (sigwait(&set_, &signal) != 0) {
    }
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
    return signal == SIGTERM ? "SIGTERM" : "SIGINT";
  }

 private:
  sigset_t set_;
};

// In one step, so that who waits for the file never reads half of it.
absl::Status WritePortFile(const std::string& path, int port) {
  const std::string temporary = StrCat(path, ".", ::getpid(), ".tmp");
  std::ofstream file(temporary);
  file << port << "\n";
  file.close();
  if (!file || ::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    return absl::UnavailableError(StrCat("--port-file: can't write ", path, ": ", ::strerror(error)));
  }
  return absl::OkStatus();
}

// Sends this process SIGTERM when nobody uses it any more; nothing if the configuration names no file of
// users.
absl::StatusOr<std::unique_ptr<UsersWatch>> WatchUsers(const std::string& path) {
  if (path.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<UsersWatch>> watch = UsersWatch::Start(path, [path] {
    spdlog::info("no process holds a lock on {} any more", path);
    ::kill(::getpid(), SIGTERM);
  });
  if (!watch.ok()) return Annotate(watch.status(), "--users-file");
  return watch;
}

int Run(const std::vector<std::string>& arguments) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(arguments);
  if (!line.ok()) return Fail(line.status(), kExitUsage);
  if (!line->text.empty()) {
    std::fputs(line->text.c_str(), stdout);
    return kExitOk;
  }
  const ServerConfig& config = line->config;
  StopSignal stop;
  KeepFreedMemory();
  StartLogging(config.log_level);
  RaiseFileLimit();

  // Outlives the server, so that a new user waits until the data directory is free.
  const absl::StatusOr<std::unique_ptr<UsersWatch>> users = WatchUsers(config.users_file);
  if (!users.ok()) return Fail(users.status(), kExitError);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Open(config);
  if (!server.ok()) return Fail(server.status(), kExitError);
  spdlog::info("eskerd {} serves {} from {}, store {}, {}", std::string(EskerVersion()), (*server)->address(),
               config.store.directory, (*server)->store()->id(), (*server)->store()->DescribeDisk());
  absl::StatusOr<std::unique_ptr<AddressFile>> address_file =
      AddressFile::Write(config.store.directory, (*server)->address());
  if (!address_file.ok()) return Fail(address_file.status(), kExitError);
  if (!config.port_file.empty()) {
    if (const absl::Status written = WritePortFile(config.port_file, (*server)->port()); !written.ok()) {
      return Fail(written, kExitError);
    }
  }

  const char* const signal = stop.Wait();
  spdlog::info("{}: stopping; calls under way have {} s to finish", signal, kDrain.count());
  address_file->reset();
  (*server)->Shutdown(kDrain);
  server->reset();
  spdlog::info("stopped");
  return kExitOk;
}

}  // namespace
}  // namespace esker

int main(int argc, char** argv) { return esker::Run(std::vector<std::string>(argv + 1, argv + argc)); }
