// A test with an eskerd of its own on a temporary directory.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "format/base/unix_socket.h"
#include "tests/integration/job.h"
#include "tests/integration/process_fixture.h"
#include "tests/integration/raw_client.h"
#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {

MATCHER_P(IsOneLineWith, part, "") {
  return std::count(arg.begin(), arg.end(), '\n') == 1 && arg.find(part) != std::string::npos;
}

class ServerTest : public ::testing::Test {
 protected:
  // A failed test shows what the server said.
  ~ServerTest() override {
    if (HasFailure() && server_ != nullptr)
      std::printf("--- log of eskerd:\n%s---\n", server_->Log().c_str());
  }

  // Call it in ASSERT_NO_FATAL_FAILURE. Skips the test where the kernel refuses the engine.
  void StartServer(ServerProcess::Options options = {}) {
    if (options.data_directory.empty()) options.data_directory = dir_ / "data";
    server_ = std::make_unique<ServerProcess>(options);
    const absl::Status started = server_->Start();
    if (options.engine == "io_uring" && absl::IsAborted(started) &&
        started.message().find("io_uring") != std::string::npos &&
        started.message().find("not permitted") != std::string::npos) {
      GTEST_SKIP() << "the kernel refuses io_uring here: " << started;
    }
    ASSERT_OK(started);
    client_ = std::make_unique<RawClient>(server_->address());
  }

  // Kills it, and starts it again.
  void RestartServer() {
    server_->Kill();
    ASSERT_OK(server_->Start());
    client_ = std::make_unique<RawClient>(server_->address());
  }

  // Clients still see the server's socket, and nobody serves it.
  void EndLocalSocket() { ASSERT_OK(UnixSocket::Listen(dir_ / "data/local.sock").status()); }

  CheckpointerOptions Options(const std::string& run = "run",
                              const std::string& incarnation = "first") const {
    return JobOptions(server_->address(), run, incarnation);
  }

  TempDir dir_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<RawClient> client_;
};

// The same on both disk engines.
class EngineTest : public ServerTest, public ::testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override {
    ServerProcess::Options options;
    options.engine = GetParam();
    StartServer(options);
  }
};

inline std::string EngineName(const ::testing::TestParamInfo<std::string>& info) { return info.param; }

}  // namespace esker::testing

#define INSTANTIATE_ENGINES(suite)                                                   \
  INSTANTIATE_TEST_SUITE_P(Engines, suite, ::testing::Values("io_uring", "threads"), \
                           ::esker::testing::EngineName)
