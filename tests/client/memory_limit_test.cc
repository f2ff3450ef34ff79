#include "client/memory_limit.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

void WriteFile(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

TEST(MemoryLimit, IsTheMachinesIfNoGroupLimitsIt) {
  const TempDir dir;
  WriteFile(dir / "meminfo", "MemTotal: 100 kB\nMemAvailable:      64 kB\n");
  WriteFile(dir / "cgroup", "0::/\n");
  EXPECT_EQ(AvailableMemoryBytes(dir / "meminfo", dir / "cgroup", dir / "fs"), 64u << 10);
}

TEST(MemoryLimit, IsTheTightestGroups) {
  const TempDir dir;
  WriteFile(dir / "meminfo", "MemAvailable: 1000 kB\n");
  WriteFile(dir / "cgroup", "0::/pod/job\n");
  WriteFile(dir / "fs/pod/job/memory.max", "max\n");
  WriteFile(dir / "fs/pod/job/memory.current", "5\n");
  WriteFile(dir / "fs/pod/memory.max", "10000\n");
  WriteFile(dir / "fs/pod/memory.current", "7000\n");
  WriteFile(dir / "fs/pod/memory.stat", "anon 6000\ninactive_file 1000\n");
  EXPECT_EQ(AvailableMemoryBytes(dir / "meminfo", dir / "cgroup", dir / "fs"), 4000u);
  WriteFile(dir / "fs/pod/memory.current", "20000\n");
  EXPECT_EQ(AvailableMemoryBytes(dir / "meminfo", dir / "cgroup", dir / "fs"), 0u);
}

TEST(MemoryLimit, IsFoundAtTheRootInAContainer) {
  const TempDir dir;
  WriteFile(dir / "cgroup", "0::/not/mounted/here\n");
  WriteFile(dir / "fs/memory.max", "500\n");
  WriteFile(dir / "fs/memory.current", "100\n");
  EXPECT_EQ(AvailableMemoryBytes(dir / "nothing", dir / "cgroup", dir / "fs"), 400u);
}

TEST(MemoryLimit, IsNoneIfNothingCanBeRead) {
  EXPECT_EQ(AvailableMemoryBytes("/nonexistent/a", "/nonexistent/b", "/nonexistent/c"),
            std::numeric_limits<uint64_t>::max());
  EXPECT_GT(AvailableMemoryBytes(), 0u);
}

}  // namespace
}  // namespace esker::testing
