// Parts of tests that change their whole process (system calls forbidden, mounts, limits), run in a forked
// child.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker::testing {

enum class ChildOutcome { kPassed, kFailed, kSkipped };

// Runs the test's part `body`, a void(), in a child. Assertions and GTEST_SKIP in it are the child's, and
// printed by it. No other threads may run.
template <typename Body>
ChildOutcome RunInChild(const Body& body) {
  constexpr int kSkippedCode = 77;
  std::fflush(nullptr);
  const pid_t child = ::fork();
  ESKER_CHECK(child >= 0);
  if (child == 0) {
    body();
    std::fflush(nullptr);
    if (::testing::Test::HasFailure()) ::_exit(1);
    ::_exit(::testing::Test::IsSkipped() ? kSkippedCode : 0);
  }
  int status = 0;
  ESKER_CHECK(::waitpid(child, &status, 0) == child);
  if (!WIFEXITED(status)) return ChildOutcome::kFailed;
  if (WEXITSTATUS(status) == kSkippedCode) return ChildOutcome::kSkipped;
  return WEXITSTATUS(status) == 0 ? ChildOutcome::kPassed : ChildOutcome::kFailed;
}

inline void InstallFilter(std::vector<sock_filter> instructions) {
  const sock_fprog program{.len = static_cast<unsigned short>(instructions.size()),
                           .filter = instructions.data()};
  ESKER_CHECK(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  ESKER_CHECK(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

// From now on the system call fails with `error` in this process, as under a container's seccomp profile.
inline void DenySystemCall(unsigned number, unsigned error) {
  InstallFilter({
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  });
}

// From now on no file can be opened with O_DIRECT in this process: EINVAL, as from a file system that lacks
// it.
inline void DenyDirectIo() {
  static_assert(std::endian::native == std::endian::little);  // the flags are the low half of the argument
  InstallFilter({
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_openat, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_DIRECT, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  });
}

// Mounts a memory file system on `directory`, for this process alone and gone with it. Returns why not, or
// "".
inline std::string MountPrivately(const char* type, const std::string& directory, const char* options) {
  if (::unshare(CLONE_NEWNS) != 0)
    return absl::StrCat("unshare(CLONE_NEWNS) was refused: ", ::strerror(errno));
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("none", directory.c_str(), type, 0, options) != 0) {
    return absl::StrCat("mounting ", type, " was refused: ", ::strerror(errno));
  }
  return "";
}

}  // namespace esker::testing

// Skips or fails the test as the child of RunInChild did.
#define EXPECT_CHILD_PASSES(...)                                                                     \
  do {                                                                                               \
    const ::esker::testing::ChildOutcome esker_child_ = ::esker::testing::RunInChild(__VA_ARGS__);   \
    EXPECT_NE(esker_child_, ::esker::testing::ChildOutcome::kFailed) << "the child says why, above"; \
    if (esker_child_ == ::esker::testing::ChildOutcome::kSkipped) {                                  \
      GTEST_SKIP() << "the child says why, above";                                                   \
    }                                                                                                \
  } while (false)
