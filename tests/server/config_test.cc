#include "server/config.h"

#include <gtest/gtest.h>

#include <fstream>

#include "format/base/text.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

using ::testing::HasSubstr;

class Config : public ::testing::Test {
 protected:
  std::string WriteFile(const std::string& text) {
    const std::string path = directory_ / "eskerd.toml";
    std::ofstream(path) << text;
    return path;
  }
  // The command line "--data DIR --config FILE" with this file.
  absl::StatusOr<CommandLine> ParseFile(const std::string& text) {
    return ParseCommandLine({"--data", "d", "--config", WriteFile(text)});
  }

  const testing::TempDir directory_;
};

TEST_F(Config, DefaultsAreThoseOfTheHelp) {
  ASSERT_OK_AND_ASSIGN(const CommandLine line, ParseCommandLine({"--data", "/srv/esker"}));
  EXPECT_TRUE(line.text.empty());
  const ServerConfig& config = line.config;
  EXPECT_EQ(config.store.directory, "/srv/esker");
  EXPECT_EQ(config.rpc.data_directory, "/srv/esker");
  EXPECT_EQ(config.rpc.version, EskerVersion());
  EXPECT_EQ(config.rpc.listen, "127.0.0.1:7070");
  EXPECT_EQ(config.port_file, "");
  EXPECT_EQ(config.users_file, "");
  EXPECT_EQ(config.store.engine, DiskEngine::kAuto);
  EXPECT_EQ(config.store.segment_bytes, 256 << 20);
  EXPECT_EQ(config.store.buffer_pool_bytes, 128 << 20);
  EXPECT_EQ(config.store.recycle_bytes, uint64_t{64} << 30);
  EXPECT_EQ(config.store.min_free_bytes, 256 << 20);
  EXPECT_EQ(config.store.read_lease_ttl_ms, 30'000);
  EXPECT_EQ(config.coordinator.save_timeout_ms, 300'000);
  EXPECT_EQ(config.coordinator.gc_interval_ms, 60'000);
  EXPECT_EQ(config.log_level, "info");
}

TEST_F(Config, EachFlagSetsItsValue) {
  ASSERT_OK_AND_ASSIGN(const CommandLine line, ParseCommandLine({"--data",
                                                                 "d",
                                                                 "--listen",
                                                                 "[::]:0",
                                                                 "--port-file",
                                                                 "p",
                                                                 "--users-file",
                                                                 "u",
                                                                 "--disk-engine",
                                                                 "threads",
                                                                 "--segment-mib",
                                                                 "16",
                                                                 "--buffer-pool-mib=32",
                                                                 "--recycle-mib",
                                                                 "0",
                                                                 "--min-free-mib",
                                                                 "1",
                                                                 "--read-lease-ttl",
                                                                 "500ms",
                                                                 "--save-timeout",
                                                                 "2m",
                                                                 "--gc-interval",
                                                                 "0",
                                                                 "--log-level",
                                                                 "debug"}));
  const ServerConfig& config = line.config;
  EXPECT_EQ(config.rpc.listen, "[::]:0");
  EXPECT_EQ(config.port_file, "p");
  EXPECT_EQ(config.users_file, "u");
  EXPECT_EQ(config.store.engine, DiskEngine::kThreadPool);
  EXPECT_EQ(config.store.segment_bytes, 16 << 20);
  EXPECT_EQ(config.store.buffer_pool_bytes, 32 << 20);
  EXPECT_EQ(config.store.recycle_bytes, 0);
  EXPECT_EQ(config.store.min_free_bytes, 1 << 20);
  EXPECT_EQ(config.store.read_lease_ttl_ms, 500);
  EXPECT_EQ(config.rpc.read_lease_ttl_ms, 500);
  EXPECT_EQ(config.coordinator.save_timeout_ms, 120'000);
  EXPECT_EQ(config.coordinator.gc_interval_ms, 0);
  EXPECT_EQ(config.log_level, "debug");
}

TEST_F(Config, WrongFlagsAreNamed) {
  const struct {
    std::vector<std::string> arguments;
    const char* text;
  } cases[] = {
      {{}, "--data DIR is missing"},
      {{"--data", ""}, "--data"},
      {{"--data"}, "--data"},
      {{"--data", "d", "--colour", "red"}, "--colour"},
      {{"--data", "d", "stray"}, "stray"},
      {{"--data", "d", "--data", "e"}, "--data"},
      {{"--data", "d", "--listen", "7070"},
       "--listen: '7070' is no address to listen on: the port is missing"},
      {{"--data", "d", "--listen", "localhost:70700"}, "--listen: "},
      {{"--data", "d", "--disk-engine", "mmap"},
       "--disk-engine: expected one of auto, io_uring, threads, found 'mmap'"},
      {{"--data", "d", "--segment-mib", "15"},
       "--segment-mib: expected a whole number of MiB from 16 to 65536, found '15'"},
      {{"--data", "d", "--segment-mib", "-1"}, "--segment-mib"},
      {{"--data", "d", "--segment-mib", "64k"}, "--segment-mib: "},
      {{"--data", "d", "--buffer-pool-mib", "0"}, "--buffer-pool-mib: "},
      {{"--data", "d", "--recycle-mib", "99999999999999999999"}, "--recycle-mib: "},
      {{"--data", "d", "--read-lease-ttl", "30"},
       "--read-lease-ttl: '30' is not a duration: the unit is missing"},
      {{"--data", "d", "--read-lease-ttl", "1ms"},
       "--read-lease-ttl: expected a duration from 100ms to 1d, found 1ms"},
      {{"--data", "d", "--save-timeout", "0"}, "--save-timeout: "},
      {{"--data", "d", "--gc-interval", "2w"}, "--gc-interval: expected a duration from 0s to 1w, found 2w"},
      {{"--data", "d", "--log-level", "loud"}, "--log-level: expected one of trace, "},
      {{"--data", "d", "--config", "/no/such/file.toml"}, "/no/such/file.toml"},
  };
  for (const auto& [arguments, text] : cases) {
    EXPECT_STATUS(ParseCommandLine(arguments), absl::StatusCode::kInvalidArgument, text);
  }
}

TEST_F(Config, TheFileHasTheNamesOfTheFlags) {
  ASSERT_OK_AND_ASSIGN(const CommandLine line,
                       ParseCommandLine({"--config", WriteFile("# comment\n"
                                                               "data = \"/srv/esker\"\n"
                                                               "listen = \"0.0.0.0:7071\"\n"
                                                               "disk-engine = \"io_uring\"\n"
                                                               "segment-mib = 64\n"
                                                               "buffer-pool-mib = \"48\"\n"
                                                               "save-timeout = \"90s\"\n"
                                                               "gc-interval = 0\n")}));
  EXPECT_EQ(line.config.store.directory, "/srv/esker");
  EXPECT_EQ(line.config.rpc.listen, "0.0.0.0:7071");
  EXPECT_EQ(line.config.store.engine, DiskEngine::kUring);
  EXPECT_EQ(line.config.store.segment_bytes, 64 << 20);
  EXPECT_EQ(line.config.store.buffer_pool_bytes, 48 << 20);
  EXPECT_EQ(line.config.coordinator.save_timeout_ms, 90'000);
  EXPECT_EQ(line.config.coordinator.gc_interval_ms, 0);
}

TEST_F(Config, FlagsWinOverTheFile) {
  const std::string file = WriteFile("data = \"/from/file\"\nsegment-mib = 64\nlisten = \"0.0.0.0:1\"\n");
  ASSERT_OK_AND_ASSIGN(const CommandLine line,
                       ParseCommandLine({"--segment-mib", "32", "--config", file, "--data", "/from/flag"}));
  EXPECT_EQ(line.config.store.directory, "/from/flag");
  EXPECT_EQ(line.config.store.segment_bytes, 32 << 20);
  EXPECT_EQ(line.config.rpc.listen, "0.0.0.0:1");
}

TEST_F(Config, ErrorsInTheFileNameTheLineAndTheKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"listen = \"0.0.0.0:1\"\n\ncolour = \"red\"\n", ":3: unknown key 'colour'; the keys are data, listen"},
      {"config = \"other.toml\"\n", ":1: unknown key 'config'"},
      {"\nsegment-mib = 1\n", ":2: segment-mib: expected a whole number of MiB from 16"},
      {"segment-mib = -16\n", ":1: segment-mib: "},
      {"segment-mib = 64.5\n", ":1: segment-mib: expected a string or a whole number (N)"},
      {"log-level = true\n", ":1: log-level: expected a string or a whole number (LEVEL)"},
      {"[listen]\nhost = \"x\"\n", ":1: listen: expected a string"},
      {"save-timeout = 30\n", ":1: save-timeout: '30' is not a duration"},
      {"\n\nthis is not TOML\n", ":3: "},
      {"listen = \"0.0.0.0:1\"\nlisten = \"0.0.0.0:2\"\n", ":2: "},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_STATUS(ParseFile(text), absl::StatusCode::kInvalidArgument,
                  StrCat(directory_ / "eskerd.toml", expected));
  }
}

TEST_F(Config, HelpAndVersionAreTexts) {
  ASSERT_OK_AND_ASSIGN(const CommandLine help, ParseCommandLine({"--help"}));
  for (const char* flag :
       {"--data", "--listen", "--config", "--gc-interval", "Default 127.0.0.1:7070", "Exit codes"}) {
    EXPECT_THAT(help.text, HasSubstr(flag));
  }
  ASSERT_OK_AND_ASSIGN(const CommandLine version, ParseCommandLine({"--version"}));
  EXPECT_EQ(version.text, StrCat("eskerd ", EskerVersion(), "\n"));
}

}  // namespace
}  // namespace esker
