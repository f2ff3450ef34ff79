#include "tests/tools/cli_harness.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "format/base/bytes.h"
#include "tests/testing/status_matchers.h"
#include "tools/safetensors.h"

namespace esker::testing {
namespace {

std::string BinaryPath(const std::string& program) {
  const char* directory = std::getenv("ESKER_BIN_DIR");
  ESKER_CHECK(directory != nullptr);
  return std::string(directory) + "/" + program;
}

}  // namespace

nlohmann::json Outcome::Json() const {
  nlohmann::json json = nlohmann::json::parse(out, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << "stdout: " << out << "\nstderr: " << err;
  return json;
}

Process::Process(const std::string& program, const std::vector<std::string>& arguments,
                 const Options& options)
    : options_(options) {
  std::vector<std::string> texts = {BinaryPath(program)};
  texts.insert(texts.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  const std::string out = options.stdout_path.empty() ? files_ / "out" : options.stdout_path;
  const std::string err = files_ / "err";
  pid_ = ::fork();
  ESKER_CHECK(pid_ >= 0);
  ::setpgid(pid_, pid_ == 0 ? ::getpid() : pid_);  // by both: whoever comes first
  if (pid_ > 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
  ::dup2(options.stderr_fd >= 0 ? options.stderr_fd : ::open(err.c_str(), O_WRONLY | O_CREAT, 0600),
         STDERR_FILENO);
  for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

Process::~Process() {
  Signal(SIGKILL);
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
}

void Process::Signal(int number) {
  if (pid_ > 0) ::kill(-pid_, number);
}

bool Process::Running() {
  if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
  return pid_ > 0;
}

Outcome Process::Wait() {
  if (pid_ > 0) ::waitpid(pid_, &status_, 0);
  pid_ = -1;
  Outcome outcome;
  outcome.exit_code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  outcome.out = ReadFile(files_ / "out");
  outcome.err = ReadFile(files_ / "err");
  return outcome;
}

TestServer::TestServer() { Start("127.0.0.1:0"); }
TestServer::~TestServer() = default;

void TestServer::Start(const std::string& listen) {
  const std::string port_file = directory_ / "port";
  std::filesystem::remove(port_file);
  process_ = std::make_unique<Process>(
      "eskerd",
      std::vector<std::string>{"--data", directory_ / "data", "--listen", listen, "--port-file", port_file,
                               "--segment-mib", "16", "--buffer-pool-mib", "64"},
      Process::Options());
  // The file's appearance is the event; there is nothing to wait on but the file system.
  std::string port;
  while (port.empty()) {
    ESKER_CHECK(process_->Running());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    port = ReadFile(port_file);
  }
  port.pop_back();
  address_ = "127.0.0.1:" + port;
}

void TestServer::Restart() {
  process_->Signal(SIGTERM);
  ASSERT_EQ(process_->Wait().exit_code, 0);
  Start(address_);
}

Outcome RunEsker(const std::string& server, const std::vector<std::string>& arguments,
                 const Process::Options& options) {
  Process::Options with_server = options;
  with_server.environment["ESKER_SERVER"] = server;
  return Process("esker", arguments, with_server).Wait();
}

FileTensor RandomTensor(ElementType type, std::vector<uint64_t> shape, uint64_t seed) {
  FileTensor tensor{type, std::move(shape), ""};
  tensor.bytes.resize(WholeTensor("", type, tensor.shape).bytes());
  std::mt19937_64 random(seed);
  for (char& c : tensor.bytes) c = static_cast<char>(random());
  return tensor;
}

void WriteSafetensors(const std::string& path, const FileTensors& tensors, const FileMetadata& metadata) {
  std::vector<SafetensorsTensor> list;
  for (const auto& [name, tensor] : tensors) list.push_back({name, tensor.type, tensor.shape});
  ASSERT_OK_AND_ASSIGN(const SafetensorsLayout layout, LayOutSafetensors(list, metadata));
  std::string file = layout.head;
  file.resize(layout.file_bytes);
  size_t i = 0;
  for (const auto& [name, tensor] : tensors)
    file.replace(layout.offsets[i++], tensor.bytes.size(), tensor.bytes);
  WriteFile(path, file);
}

FileTensors ReadSafetensors(const std::string& path, FileMetadata* metadata) {
  FileTensors tensors;
  const auto file = SafetensorsFile::Open(path);
  EXPECT_OK(file);
  if (!file.ok()) return tensors;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    tensors[entry.tensor.name] = {entry.tensor.type, entry.tensor.shape,
                                  std::string(AsText((*file)->Bytes(entry)))};
  }
  if (metadata != nullptr) *metadata = (*file)->metadata();
  return tensors;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes;
  file.close();
  ASSERT_TRUE(file) << path;
}

std::vector<std::string> ListDirectory(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace esker::testing
