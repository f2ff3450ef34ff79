#include "tools/interchange.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "format/base/status.h"
#include "format/base/text.h"
#include "tools/files.h"

namespace esker {
namespace {

// Exits with 0 if both packages are there. Does not import them: that takes seconds.
constexpr const char* kHasPackages =
    "import importlib.util as u, sys; "
    "sys.exit(not all(u.find_spec(name) for name in ('torch', 'esker', 'esker.interchange')))";

// The first bytes of a file, fewer if it is shorter.
absl::StatusOr<std::string> Head(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(errno, StrCat("opening ", path));
  std::array<char, 16> head{};
  const ssize_t got = ::read(fd, head.data(), head.size());
  const int error = errno;
  ::close(fd);
  if (got < 0) return FileError(error, StrCat("reading ", path));
  return std::string(head.data(), static_cast<size_t>(got));
}

bool BeginsAsTorch(std::string_view head) {
  if (head.starts_with("PK\x03\x04")) return true;
  // A pickle of protocol 2 or later: what torch.save wrote before it made archives. The length of a
  // safetensors header may have the same bytes, but a brace follows it.
  const bool pickle = head.size() > 1 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5;
  return pickle && !(head.size() > 8 && head[8] == '{');
}

std::vector<char*> Argv(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  return argv;
}

bool Succeeds(const std::vector<std::string>& command) {
  pid_t pid = 0;
  if (::posix_spawnp(&pid, command[0].c_str(), nullptr, nullptr, Argv(command).data(), environ) != 0)
    return false;
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

absl::StatusOr<Format> DetectFormat(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    const bool dcp = std::filesystem::exists(std::filesystem::path(path) / ".metadata", error);
    return dcp ? Format::kDcp : Format::kSafetensors;
  }
  const absl::StatusOr<std::string> head = Head(path);
  if (!head.ok()) return head.status();
  return BeginsAsTorch(*head) ? Format::kTorch : Format::kSafetensors;
}

std::optional<Format> FormatNamed(const std::string& name) {
  if (name == "safetensors") return Format::kSafetensors;
  if (name == "torch") return Format::kTorch;
  if (name == "dcp") return Format::kDcp;
  return std::nullopt;
}

absl::Status BecomeInterchange(const std::vector<std::string>& arguments) {
  const char* chosen = std::getenv("ESKER_PYTHON");
  const std::string python = chosen != nullptr && *chosen != '\0' ? chosen : "python3";
  // -P: modules that lie in the present directory by chance are not what is meant.
  if (!Succeeds({python, "-P", "-c", kHasPackages})) {
    return absl::UnimplementedError(StrCat(
        "this format needs PyTorch, and ", python,
        " has not both Python packages, esker and torch: install them (pip install './client/python[torch]' "
        "in Esker's repository), or let ESKER_PYTHON name a Python 3.11 or later that has them"));
  }
  std::vector<std::string> command = {python, "-P", "-m", "esker.interchange"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  ::execvp(python.c_str(), Argv(command).data());
  return FileError(errno, StrCat("starting ", python));
}

}  // namespace esker
