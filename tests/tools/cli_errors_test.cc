// What `esker` does with bad input and bad surroundings, end to end with real processes.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "tests/testing/seed.h"
#include "tests/testing/status_matchers.h"
#include "tests/tools/cli_harness.h"

namespace esker::testing {
namespace {

using ::testing::HasSubstr;

// One line on stderr, the same in JSON on stdout, and the exit code.
void ExpectFails(const std::string& server, std::vector<std::string> arguments, int exit_code,
                 const std::string& text) {
  const Outcome plain = RunEsker(server, arguments);
  EXPECT_EQ(plain.exit_code, exit_code) << plain.err;
  EXPECT_THAT(plain.err, ::testing::StartsWith("esker: "));
  EXPECT_THAT(plain.err, HasSubstr(text));
  EXPECT_EQ(std::count(plain.err.begin(), plain.err.end(), '\n'), 1) << plain.err;
  EXPECT_EQ(plain.out, "");

  arguments.push_back("--json");
  const Outcome json = RunEsker(server, arguments);
  EXPECT_EQ(json.exit_code, exit_code) << json.err;
  const nlohmann::json error = json.Json()["error"];
  EXPECT_EQ(error["exit_code"], exit_code);
  EXPECT_THAT(std::string(error["message"]), HasSubstr(text));
}

// A TCP port of this machine that does something other than gRPC.
class Listener {
 public:
  enum class Kind { kClosed, kSilent, kGarbage };
  explicit Listener(Kind kind) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    if (kind == Kind::kClosed) return;  // the port is taken, but nobody listens
    EXPECT_EQ(::listen(fd_, 16), 0);
    if (kind == Kind::kGarbage) thread_ = std::thread([this] { AnswerGarbage(); });
  }
  ~Listener() {
    ::shutdown(fd_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    ::close(fd_);
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  void AnswerGarbage() {
    while (true) {
      const int connection = ::accept(fd_, nullptr, nullptr);
      if (connection < 0) return;
      constexpr char kText[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
      [[maybe_unused]] const ssize_t sent = ::send(connection, kText, sizeof(kText) - 1, MSG_NOSIGNAL);
      ::close(connection);
    }
  }

  int fd_ = -1;
  uint16_t port_ = 0;
  std::thread thread_;
};

// --- the command line
// ---------------------------------------------------------------------------------------

TEST(CliUsage, MistakesAreExitCode2) {
  const std::string nobody = "127.0.0.1:1";
  ExpectFails(nobody, {}, 2, "a command is required");
  ExpectFails(nobody, {"lss"}, 2, "lss");
  ExpectFails(nobody, {"ls", "--frob"}, 2, "--frob");
  ExpectFails(nobody, {"show"}, 2, "checkpoint");
  ExpectFails(nobody, {"restore", "run@1"}, 2, "--to");
  ExpectFails(nobody, {"save", "run@1"}, 2, "paths");
  ExpectFails(nobody, {"ls", "--all"}, 2, "run");
  ExpectFails(nobody, {"save", "run@1", "f", "--compress", "lz4"}, 2, "lz4");
  ExpectFails(nobody, {"gc", "run", "--keep-last", "0"}, 2, "0");
  ExpectFails(nobody, {"gc", "run", "--keep-last", "-1"}, 2, "-1");
  ExpectFails(nobody, {"gc", "run", "--keep-within", "soon"}, 2, "soon");
  ExpectFails(nobody, {"gc", "run", "--keep-within", "0"}, 2, "--keep-within");
  ExpectFails(nobody, {"verify"}, 2, "--all");
  ExpectFails(nobody, {"verify", "run@1", "--all"}, 2, "--all");
  ExpectFails(nobody, {"ls", "--timeout", "now"}, 2, "now");
  ExpectFails(nobody, {"ls", "--timeout", "0"}, 2, "--timeout");
  ExpectFails(nobody, {"bench"}, 2, "subcommand");
  ExpectFails(nobody, {"bench", "save", "--size", "much"}, 2, "much");
  ExpectFails(nobody, {"bench", "save", "--size", "4kB"}, 2, "--size");
  ExpectFails(nobody, {"bench", "save", "--ranks", "0"}, 2, "--ranks");
  ExpectFails(nobody, {"bench", "codec", "--size", "5MB"}, 2, "--size");
}

TEST(CliUsage, BadNamesAreRefusedBeforeTheServerIsAsked) {
  const std::string nobody = "127.0.0.1:1";
  for (const char* name : {"../x@3", "run@-1", "run@", "run", "@1", "run@1.5", "run@1e3", "RUN@1", "a/b@1",
                           "run@latest@1", "run@99999999999999999999", "run@ 1", ".hidden@1", "run\n@1"}) {
    ExpectFails(nobody, {"show", name}, 2, "expected RUN@STEP or RUN@latest");
    ExpectFails(nobody, {"restore", name, "--to", "/nowhere/x"}, 2, "expected RUN@STEP or RUN@latest");
    ExpectFails(nobody, {"rm", name}, 2, "expected RUN@STEP or RUN@latest");
  }
  ExpectFails(nobody, {"show", std::string(129, 'r') + "@1"}, 2, "expected");
  ExpectFails(nobody, {"ls", "../x"}, 2, "run name");
  ExpectFails(nobody, {"gc", "../x"}, 2, "run name");
  ExpectFails(nobody, {"verify", "../x"}, 2, "run name");
}

TEST(CliUsage, HelpAndVersionNeedNoServer) {
  const Outcome help = RunEsker("127.0.0.1:1", {"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const char* text : {"ls", "show", "save", "restore", "verify", "gc", "pin", "unpin", "rm", "status",
                           "dump", "bench", "Exit codes:", "--server", "--json"}) {
    EXPECT_THAT(help.out, HasSubstr(text));
  }
  EXPECT_THAT(RunEsker("127.0.0.1:1", {"bench", "save", "--help"}).out, HasSubstr("--ranks"));
  EXPECT_THAT(RunEsker("127.0.0.1:1", {"--version"}).out, ::testing::StartsWith("esker "));
}

TEST(CliUsage, OutputThatCanNotBeWrittenIsAnError) {
  Process::Options options;
  options.stdout_path = "/dev/full";
  const Outcome outcome = RunEsker("127.0.0.1:1", {"ls", "--json", "--timeout", "1ms"}, options);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("stdout"));
}

// --- the server
// ---------------------------------------------------------------------------------------------

TEST(CliServer, ThatIsNotThereOrIsNotEskerdIsExitCode5) {
  const TempDir directory;
  for (const auto kind : {Listener::Kind::kClosed, Listener::Kind::kSilent, Listener::Kind::kGarbage}) {
    const Listener listener(kind);
    const std::string& server = listener.address();
    ExpectFails(server, {"ls", "--timeout", "300ms"}, 5, listener.address());
    ExpectFails(server, {"restore", "run@1", "--timeout", "300ms", "--to", directory / "out"}, 5,
                listener.address());
    EXPECT_EQ(ListDirectory(directory.path()), std::vector<std::string>{});
  }
}

TEST(CliServer, AddressThatIsNoneIsExitCode2) {
  for (const char* address : {"nonsense", "host:", ":7070", "127.0.0.1:99999", "127.0.0.1:x"}) {
    ExpectFails("127.0.0.1:1", {"status", "--timeout", "300ms", "--server", address}, 2, address);
  }
}

TEST(CliServer, TheOptionWinsOverTheEnvironment) {
  TestServer server;
  EXPECT_EQ(RunEsker("127.0.0.1:1", {"--server", server.address(), "status"}).exit_code, 0);
  EXPECT_EQ(RunEsker(server.address(), {"status"}).exit_code, 0);
}

// --- files and checkpoints
// ----------------------------------------------------------------------------------

class CliInputTest : public ::testing::Test {
 protected:
  void Fails(const std::vector<std::string>& arguments, int exit_code, const std::string& text) {
    ExpectFails(server_.address(), arguments, exit_code, text);
  }
  std::string Write(const std::string& name, const std::string& bytes) {
    WriteFile(directory_ / name, bytes);
    return directory_ / name;
  }
  std::string Model(const std::string& name, const FileTensors& tensors, const FileMetadata& metadata = {}) {
    WriteSafetensors(directory_ / name, tensors, metadata);
    return directory_ / name;
  }
  std::string HeaderFile(const std::string& name, const std::string& header, size_t data_bytes) {
    std::string file(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, sizeof(length));
    return Write(name, file + header + std::string(data_bytes, 'd'));
  }

  const FileTensors tensors_ = {{"w", RandomTensor(ElementType::kF32, {8, 4}, 1)}};
  TestServer server_;
  TempDir directory_;
};

TEST_F(CliInputTest, BadSafetensorsFilesAreNamedAndNothingIsSaved) {
  const std::string good = ReadFile(Model("good", tensors_));
  Fails({"save", "run@1", Write("text", "this is not a safetensors file at all")}, 2, "text: ");
  Fails({"save", "run@1", Write("empty", "")}, 4, "empty: ");
  Fails({"save", "run@1", Write("cut", good.substr(0, good.size() - 1))}, 4, "cut: tensor \"w\"");
  Fails({"save", "run@1", Write("cut-header", good.substr(0, 20))}, 4, "cut-header: ");
  std::string huge = good;
  huge[7] = '\x80';
  Fails({"save", "run@1", Write("huge", huge)}, 2, "huge: its header would be");
  Fails(
      {"save", "run@1",
       HeaderFile(
           "overlap",
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
           6)},
      2, "tensor \"b\"");
  Fails({"save", "run@1", HeaderFile("range", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 2)},
        4, "range: tensor \"a\"");
  Fails({"save", "run@1",
         HeaderFile("nul", R"({"a\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)},
        2, "NUL");
  Fails({"save", "run@1",
         HeaderFile(
             "long",
             "{\"" + std::string(10'240, 'n') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)},
        2, "4096");
  Fails({"save", "run@1",
         HeaderFile("utf8", "{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1)},
        2, "utf8: ");
  Fails({"save", "run@1", directory_ / "none"}, 3, "none");
  Fails({"save", "run@1", directory_.path()}, 2, "neither safetensors files nor");
  EXPECT_EQ(RunEsker(server_.address(), {"ls", "--json"}).Json()["runs"].size(), 0u);
}

TEST_F(CliInputTest, ATensorInTwoFilesOrTwoMetadataAreRefused) {
  Fails({"save", "run@1", Model("a", tensors_), Model("b", tensors_)}, 2, "tensor \"w\" is in ");
  const FileTensors other = {{"v", RandomTensor(ElementType::kF32, {1}, 2)}};
  Fails({"save", "run@1", Model("c", tensors_, {{"k", "1"}}), Model("d", other, {{"k", "2"}})}, 2,
        "d: __metadata__ \"k\"");
}

TEST_F(CliInputTest, AStepIsNotSavedTwiceByMistake) {
  const std::string file = Model("m", tensors_);
  ASSERT_EQ(RunEsker(server_.address(), {"save", "run@1", file}).exit_code, 0);
  Fails({"save", "run@1", file}, 6, "run@1 exists");
  Fails({"save", "run@latest", file}, 2, "RUN@STEP");
  Fails({"save", "run@-1", file}, 2, "expected RUN@STEP");
  const FileTensors other = {{"w", RandomTensor(ElementType::kF32, {8, 4}, 9)}};
  const Outcome forced =
      RunEsker(server_.address(), {"save", "run@1", Model("o", other), "--force", "--json"});
  EXPECT_EQ(forced.exit_code, 0) << forced.err;
  EXPECT_EQ(forced.Json()["checkpoint"]["attempt"], 2);
  ASSERT_EQ(RunEsker(server_.address(), {"restore", "run@1", "--to", directory_ / "r.safetensors"}).exit_code,
            0);
  EXPECT_EQ(ReadSafetensors(directory_ / "r.safetensors"), other);
}

TEST_F(CliInputTest, AnOlderIncarnationIsFenced) {
  const std::string file = Model("m", tensors_);
  ASSERT_EQ(RunEsker(server_.address(), {"save", "run@1", file, "--incarnation", "first"}).exit_code, 0);
  ASSERT_EQ(RunEsker(server_.address(), {"save", "run@2", file, "--incarnation", "second"}).exit_code, 0);
  Fails({"save", "run@3", file, "--incarnation", "first"}, 6, "attempt 2");
  ASSERT_EQ(RunEsker(server_.address(), {"save", "run@3", file, "--incarnation", "second"}).exit_code, 0);
}

TEST_F(CliInputTest, UnknownRunsAndStepsAreExitCode3) {
  ASSERT_EQ(RunEsker(server_.address(), {"save", "run@1", Model("m", tensors_)}).exit_code, 0);
  Fails({"ls", "other"}, 3, "other");
  for (const char* name : {"run@2", "other@1", "other@latest"}) {
    Fails({"show", name}, 3, std::string(name).substr(0, std::string(name).find('@')));
    Fails({"verify", name}, 3, "");
    Fails({"pin", name}, 3, "");
    Fails({"unpin", name}, 3, "");
    Fails({"rm", name}, 3, "");
    Fails({"restore", name, "--to", directory_ / "out"}, 3, "");
  }
  Fails({"verify", "other"}, 3, "other");
  Fails({"gc", "other", "--keep-last", "1"}, 3, "other");
}

// --- bench
// --------------------------------------------------------------------------------------------------

// On a server of its own, which leaves nothing.
nlohmann::ordered_json BenchJson(const std::vector<std::string>& arguments) {
  const TempDir directory;
  std::vector<std::string> all = {"bench"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  for (const std::string word : {"--runs", "1", "--dir", directory.path().c_str(), "--json"})
    all.push_back(word);
  const Outcome outcome = RunEsker("127.0.0.1:1", all);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(ListDirectory(directory.path()), std::vector<std::string>{});
  return outcome.Json();
}

void ExpectPositive(const nlohmann::ordered_json& json, const std::vector<std::string>& figures) {
  for (const std::string& figure : figures) {
    SCOPED_TRACE(figure);
    ASSERT_TRUE(json.contains(figure) && json[figure].is_number()) << json;
    EXPECT_GT(json[figure], 0);
  }
}

TEST(CliBench, ReportsWhatItMeasuredAndLeavesNothing) {
  for (const std::string command : {"save", "restore"}) {
    const auto json = BenchJson({command, "--size", "24MiB", "--ranks", "3"});
    EXPECT_EQ(json["command"], command);
    ExpectPositive(json, {"durable_gbps", "limit_gbps", "ratio", "stall_over_memcpy", "cpu_s_per_gb"});
    EXPECT_EQ(json["bytes_raw"], 24 << 20);
    EXPECT_EQ(json["bytes_stored"], 24 << 20);
    EXPECT_GT(json["server_peak_rss_bytes"], 1'000'000);
    EXPECT_GT(json["rank_peak_rss_bytes"], 1'000'000);
  }
}

TEST(CliBench, TransportIsWhatWasAskedFor) {
  for (const std::string transport : {"shm", "grpc"}) {
    const auto json = BenchJson({"save", "--size", "8MiB", "--ranks", "2", "--transport", transport});
    EXPECT_EQ(json["transport"], transport);
    EXPECT_TRUE(json["cpu_s_per_gb_beyond_copy"].is_number());
    // TCP is the limit of what goes over it, and of nothing else.
    EXPECT_EQ(json["tcp_ratio"].is_null(), transport == "shm");
    EXPECT_EQ(json["tcp_limit_gbps"].is_null(), transport == "shm");
  }
}

TEST(CliBench, RestoreSaysWhichWayItsBytesCame) {
  const auto transport_of = [](const std::string& size, const std::string& asked_for) {
    return BenchJson({"restore", "--size", size, "--ranks", "2", "--transport", asked_for})["transport"];
  };
  EXPECT_EQ(transport_of("16MiB", "auto"), "shm");
  EXPECT_EQ(transport_of("16MiB", "grpc"), "grpc");
  // So little goes over the connection that is there.
  EXPECT_EQ(transport_of("4MiB", "auto"), "grpc");
}

TEST(CliBench, StallComparesTheFirstSaveAndLaterOnesWithACopy) {
  const auto json = BenchJson({"stall", "--size", "8MiB"});
  EXPECT_EQ(json["command"], "stall");
  ExpectPositive(json,
                 {"first_stall_over_memcpy", "stall_over_memcpy", "first_stall_ms", "stall_ms", "memcpy_ms"});
  EXPECT_EQ(json["bytes_raw"], 8 << 20);
}

TEST(CliBench, CommitComparesATinySaveWithASmallDurableWrite) {
  const auto json = BenchJson({"commit", "--ranks", "2"});
  EXPECT_EQ(json["command"], "commit");
  ExpectPositive(json, {"commit_ms", "limit_ms", "ratio"});
}

TEST(CliBench, CodecMeasuresEachCodecOnEachTensorSet) {
  const Outcome outcome =
      RunEsker("127.0.0.1:1", {"bench", "codec", "--size", "4MiB", "--passes", "1", "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::map<std::string, double> planes_ratio;
  for (const auto& row : outcome.Json()) {
    SCOPED_TRACE(row.dump());
    EXPECT_GT(row["size_ratio"], 0);
    EXPECT_LE(row["size_ratio"], 1);
    EXPECT_GT(row["decode_gbps_per_core"], 0);
    EXPECT_EQ(row["encode_gbps_per_core"].is_null(), row["codec"] == "raw");
    if (row["codec"] == "raw") {
      EXPECT_EQ(row["size_ratio"], 1);
    }
    if (row["codec"] == "planes") {
      planes_ratio[std::string(row["tensor_set"]) + " " + std::string(row["dtype"])] = row["size_ratio"];
    }
  }
  EXPECT_LT(planes_ratio["gaussian weights BF16"], 0.68);
  EXPECT_LT(planes_ratio["gaussian weights F32"], 0.85);
  EXPECT_LT(planes_ratio["zeros F32"], 0.001);
  EXPECT_EQ(planes_ratio["random bytes BF16"], 1);
}

TEST(CliBench, CodecMeasuresTheTensorsOfAFile) {
  const TempDir directory;
  const std::string path = directory / "model.safetensors";
  WriteSafetensors(path, {{"a", RandomTensor(ElementType::kF32, {1000}, 1)},
                          {"b", RandomTensor(ElementType::kI8, {7}, 2)}});
  const Outcome outcome =
      RunEsker("127.0.0.1:1", {"bench", "codec", "--file", path, "--passes", "1", "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::set<std::string> dtypes;
  for (const auto& row : outcome.Json()) dtypes.insert(row["dtype"]);
  EXPECT_EQ(dtypes, (std::set<std::string>{"BF16", "F32", "I8"}));
  EXPECT_EQ(RunEsker("127.0.0.1:1", {"bench", "codec", "--file", directory / "none"}).exit_code, 3);
}

TEST(CliBench, OnARunningServerItRemovesWhatItSaved) {
  TestServer server;
  const Outcome outcome = RunEsker("127.0.0.1:1", {"bench", "save", "--size", "4MiB", "--ranks", "2",
                                                   "--runs", "2", "--server", server.address()});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("GB/s, durable"));
  EXPECT_EQ(RunEsker(server.address(), {"ls", "esker-bench", "--json"}).Json()["checkpoints"].size(), 0u);
}

TEST(CliBench, InterruptedItStopsItsServerAndRemovesItsDirectory) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 5; ++round) {
    const TempDir directory;
    const int watch = ::inotify_init1(IN_CLOEXEC);
    ASSERT_GE(::inotify_add_watch(watch, directory.path().c_str(), IN_CREATE), 0);
    Process bench("esker", {"bench", "save", "--size", "1GiB", "--dir", directory.path()}, {});
    char event[4096];
    ASSERT_GT(::read(watch, event, sizeof(event)), 0);
    ::close(watch);
    // From the first moment at which there is something to remove to the middle of a save.
    std::this_thread::sleep_for(std::chrono::milliseconds(round == 0 ? 0 : random() % 1500));
    bench.Signal(SIGINT);
    const Outcome outcome = bench.Wait();
    EXPECT_EQ(outcome.exit_code, 128 + SIGINT) << outcome.err;
    EXPECT_EQ(ListDirectory(directory.path()), std::vector<std::string>{});
  }
}

}  // namespace
}  // namespace esker::testing
