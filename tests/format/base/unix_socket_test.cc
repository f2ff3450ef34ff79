#include "format/base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker::testing {
namespace {

using std::chrono::milliseconds;

UnixSocket::TimePoint In(milliseconds time) { return std::chrono::steady_clock::now() + time; }

struct Pair {
  UnixSocket client;
  UnixSocket server;
};

absl::StatusOr<Pair> MakePair(const std::string& path) {
  ESKER_ASSIGN_OR_RETURN(const UnixSocket listener, UnixSocket::Listen(path));
  Pair pair;
  ESKER_ASSIGN_OR_RETURN(pair.client, UnixSocket::Connect(path));
  ESKER_ASSIGN_OR_RETURN(pair.server, listener.Accept());
  return pair;
}

class UnixSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Pair> pair = MakePair(dir_ / "socket");
    ASSERT_OK(pair.status());
    pair_ = *std::move(pair);
  }

  const TempDir dir_;
  Pair pair_;
};

TEST_F(UnixSocketTest, KeepsPacketsApartAndInOrder) {
  ASSERT_OK(pair_.client.Send("one"));
  ASSERT_OK(pair_.client.Send(std::string(kMaxPacketBytes, 'x')));
  ASSERT_OK_AND_ASSIGN(const Packet first, pair_.server.Receive(std::nullopt));
  EXPECT_EQ(first.bytes, "one");
  EXPECT_FALSE(first.descriptor);
  ASSERT_OK_AND_ASSIGN(const Packet second, pair_.server.Receive(std::nullopt));
  EXPECT_EQ(second.bytes, std::string(kMaxPacketBytes, 'x'));
}

TEST_F(UnixSocketTest, PassesADescriptor) {
  const UniqueFd file(::open((dir_ / "file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_OK(pair_.client.Send("take", file.get()));
  ASSERT_OK_AND_ASSIGN(const Packet packet, pair_.server.Receive(std::nullopt));
  ASSERT_TRUE(packet.descriptor);
  ASSERT_EQ(::write(packet.descriptor.get(), "hello", 5), 5);
  EXPECT_EQ(std::filesystem::file_size(dir_ / "file"), 5u);
}

TEST_F(UnixSocketTest, SaysWhoThePeerIs) {
  ASSERT_OK_AND_ASSIGN(const uid_t user, pair_.server.PeerUser());
  EXPECT_EQ(user, ::geteuid());
}

TEST_F(UnixSocketTest, ReceiveTakesNoLongerThanAllowed) {
  EXPECT_STATUS(pair_.server.Receive(In(milliseconds(20))).status(), absl::StatusCode::kDeadlineExceeded, "");
}

// What a process sent before it was killed arrives, also if it left something unread behind.
TEST_F(UnixSocketTest, WhatADeadPeerSentArrives) {
  ASSERT_OK(pair_.server.Send("never read"));
  ASSERT_OK(pair_.client.Send("first"));
  ASSERT_OK(pair_.client.Send("second"));
  pair_.client = UnixSocket();
  ASSERT_OK_AND_ASSIGN(const Packet first, pair_.server.Receive(std::nullopt));
  EXPECT_EQ(first.bytes, "first");
  ASSERT_OK_AND_ASSIGN(const Packet second, pair_.server.Receive(std::nullopt));
  EXPECT_EQ(second.bytes, "second");
  EXPECT_STATUS(pair_.server.Receive(std::nullopt).status(), absl::StatusCode::kUnavailable, "closed");
  EXPECT_STATUS(pair_.server.Send("to nobody"), absl::StatusCode::kUnavailable, "closed");
}

TEST_F(UnixSocketTest, SendDoesNotWaitForAPeerThatHangs) {
  absl::Status status;
  for (int i = 0; i < 10'000 && status.ok(); ++i)
    status = pair_.client.Send(std::string(kMaxPacketBytes, 'x'));
  EXPECT_STATUS(status, absl::StatusCode::kResourceExhausted, "does not take");
}

TEST_F(UnixSocketTest, StopReceivingWakesTheReceiverAndStillSends) {
  std::thread stops([this] {
    std::this_thread::sleep_for(milliseconds(20));
    pair_.server.StopReceiving();
  });
  EXPECT_STATUS(pair_.server.Receive(std::nullopt).status(), absl::StatusCode::kUnavailable, "");
  stops.join();
  EXPECT_STATUS(pair_.client.Send("too late"), absl::StatusCode::kUnavailable, "");
  ASSERT_OK(pair_.server.Send("goodbye"));
  ASSERT_OK_AND_ASSIGN(const Packet packet, pair_.client.Receive(std::nullopt));
  EXPECT_EQ(packet.bytes, "goodbye");
}

TEST_F(UnixSocketTest, StopReceivingEndsAccept) {
  ASSERT_OK_AND_ASSIGN(const UnixSocket listener, UnixSocket::Listen(dir_ / "other"));
  std::thread stops([&listener] {
    std::this_thread::sleep_for(milliseconds(20));
    listener.StopReceiving();
  });
  EXPECT_STATUS(listener.Accept().status(), absl::StatusCode::kCancelled, "");
  stops.join();
}

TEST_F(UnixSocketTest, TakesThePlaceOfADeadServersSocket) {
  ASSERT_OK(UnixSocket::Listen(dir_ / "again").status());
  EXPECT_STATUS(UnixSocket::Connect(dir_ / "again").status(), absl::StatusCode::kUnavailable, "again");
  ASSERT_OK_AND_ASSIGN(const Pair pair, MakePair(dir_ / "again"));
  ASSERT_OK(pair.client.Send("x"));
}

TEST_F(UnixSocketTest, IsForItsOwnUserOnly) {
  const auto mode = std::filesystem::status(dir_ / "socket").permissions();
  EXPECT_EQ(static_cast<unsigned>(mode), 0600u);
}

TEST_F(UnixSocketTest, MayHaveALongPath) {
  const std::string directory = dir_ / std::string(150, 'd');
  ASSERT_TRUE(std::filesystem::create_directory(directory));
  ASSERT_OK_AND_ASSIGN(const Pair pair, MakePair(directory + "/socket"));
  ASSERT_OK(pair.server.Send("far"));
  ASSERT_OK_AND_ASSIGN(const Packet packet, pair.client.Receive(std::nullopt));
  EXPECT_EQ(packet.bytes, "far");
  EXPECT_FALSE(UnixSocket::Listen(dir_ / std::string(200, 'n')).ok());
}

TEST_F(UnixSocketTest, ConnectSaysWhatIsWrong) {
  EXPECT_STATUS(UnixSocket::Connect(dir_ / "none").status(), absl::StatusCode::kNotFound, "none");
}

}  // namespace
}  // namespace esker::testing
