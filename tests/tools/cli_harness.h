// Runs the real `esker` and `eskerd` binaries for tests. They are looked for in ESKER_BIN_DIR (set by CMake).
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "esker/state.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_dir.h"

namespace esker::testing {

// What a finished process left. `exit_code` is 128 + the signal if one ended it, as in a shell.
struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;

  // The output as JSON; fails the test if it is none.
  nlohmann::json Json() const;
};

// A process whose output goes to files, so that it never blocks on a pipe.
class Process {
 public:
  struct Options {
    std::map<std::string, std::string> environment;  // added to this process's
    int stderr_fd = -1;                              // instead of a file
    std::string stdout_path;                         // instead of a file of the harness
  };
  // `program`: a name in ESKER_BIN_DIR.
  Process(const std::string& program, const std::vector<std::string>& arguments, const Options& options);
  ~Process();  // SIGKILL
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // To it and the processes that it started, as a terminal does.
  void Signal(int number);
  bool Running();
  Outcome Wait();

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  TempDir files_;
  Options options_;
};

// An eskerd of the test's own, on a free port, with small segments.
class TestServer {
 public:
  TestServer();
  ~TestServer();

  // "127.0.0.1:PORT"
  const std::string& address() const { return address_; }
  std::string SegmentDirectory() const { return directory_ / "data/segments"; }
  // Stops it, lets go of the port, and starts it again on the same data.
  void Restart();

 private:
  void Start(const std::string& listen);

  TempDir directory_;
  std::unique_ptr<Process> process_;
  std::string address_;
};

// `esker ARGUMENTS` with ESKER_SERVER set to `server`.
Outcome RunEsker(const std::string& server, const std::vector<std::string>& arguments,
                 const Process::Options& options = {});

// --- safetensors files
// --------------------------------------------------------------------------------------

struct FileTensor {
  ElementType type;
  std::vector<uint64_t> shape;
  std::string bytes;

  bool operator==(const FileTensor&) const = default;
};
using FileTensors = std::map<std::string, FileTensor>;
using FileMetadata = std::vector<std::pair<std::string, std::string>>;

// Of random content.
FileTensor RandomTensor(ElementType type, std::vector<uint64_t> shape, uint64_t seed);
void WriteSafetensors(const std::string& path, const FileTensors& tensors, const FileMetadata& metadata = {});
// Fails the test if the file is not valid.
FileTensors ReadSafetensors(const std::string& path, FileMetadata* metadata = nullptr);

std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& bytes);
// The names in a directory, sorted, hidden ones too.
std::vector<std::string> ListDirectory(const std::string& path);

}  // namespace esker::testing
