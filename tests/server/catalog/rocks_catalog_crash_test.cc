// A process that writes the catalog is killed at random moments; what it had acknowledged must be there. The
// parent only forks and never opens a catalog itself: RocksDB's threads would not survive the fork.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/catalog/rocks_catalog.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

// Counts two keys up together for ever; tells each acknowledged count through the pipe. Never returns.
void WriteForEver(const std::string& directory, int pipe) {
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = OpenRocksCatalog(directory);
  if (!catalog.ok()) _exit(2);
  const absl::StatusOr<std::optional<CatalogEntry>> start = (*catalog)->Get("a");
  if (!start.ok()) _exit(3);
  uint64_t version = start->has_value() ? (*start)->version : 0;
  for (uint64_t count = version == 0 ? 1 : std::stoull((*start)->value) + 1;; ++count) {
    const std::string value = absl::StrCat(count);
    const absl::StatusOr<bool> applied = (*catalog)->CompareAndSet(
        {{"a", version}}, {{"a", value}, {"b", value + std::string(count % 3000, ' ')}});
    if (!applied.ok() || !*applied) _exit(4);
    const absl::StatusOr<std::optional<CatalogEntry>> now = (*catalog)->Get("a");
    if (!now.ok() || !now->has_value()) _exit(5);
    version = (*now)->version;
    if (::write(pipe, &count, sizeof(count)) != sizeof(count)) _exit(6);
  }
}

// Whether both keys are at one count that is `acknowledged` or the next, which was under way. Never returns.
void Check(const std::string& directory, uint64_t acknowledged) {
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = OpenRocksCatalog(directory);
  if (!catalog.ok()) {
    std::fprintf(stderr, "%s\n", catalog.status().ToString().c_str());
    _exit(2);
  }
  const auto value = [&](const char* key) -> uint64_t {
    const absl::StatusOr<std::optional<CatalogEntry>> entry = (*catalog)->Get(key);
    return entry.ok() && entry->has_value() ? std::stoull((*entry)->value) : 0;
  };
  const uint64_t a = value("a");
  const uint64_t b = value("b");
  std::fflush(nullptr);
  if (a != b) _exit(3);
  if (a < acknowledged) _exit(4);
  _exit(a > acknowledged + 1 ? 5 : 0);
}

int WaitForExit(pid_t child) {
  int status = 0;
  ESKER_CHECK(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(RocksCatalogCrash, WhatWasAcknowledgedSurvivesKill) {
  std::mt19937_64 random(TestSeed());
  const TempDir directory;
  uint64_t acknowledged = 0;
  for (int round = 0; round < 15; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t writer = ::fork();
    ASSERT_GE(writer, 0);
    if (writer == 0) {
      ::close(ends[0]);
      WriteForEver(directory / "catalog", ends[1]);
    }
    ::close(ends[1]);
    // The moment of the kill: after some acknowledged writes, and a little more or less.
    const uint64_t until = acknowledged + 1 + random() % 60;
    uint64_t count = 0;
    bool killed = false;
    while (::read(ends[0], &count, sizeof(count)) == sizeof(count)) {
      acknowledged = count;
      // Not only when it is equal: the last round's writer may have counted once more than it could tell.
      if (count >= until && !killed) {
        killed = true;
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
        ASSERT_EQ(::kill(writer, SIGKILL), 0);
      }
    }
    ::close(ends[0]);
    ASSERT_EQ(WaitForExit(writer), -SIGKILL) << "round " << round;
    ASSERT_GE(acknowledged, until);

    const pid_t checker = ::fork();
    ASSERT_GE(checker, 0);
    if (checker == 0) Check(directory / "catalog", acknowledged);
    ASSERT_EQ(WaitForExit(checker), 0) << "round " << round << ", " << acknowledged << " acknowledged";
  }
}

}  // namespace
}  // namespace esker::testing
