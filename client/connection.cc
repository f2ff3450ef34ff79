#include "client/connection.h"

#include <arpa/inet.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "format/base/text.h"
#include "format/chunk_record.h"
#include "format/frame.h"
#include "format/names.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace esker {
namespace {

// The manifest of 2^20 ranks has about 70 MB.
constexpr int kMaxAnswerBytes = 128 << 20;
// Bodies of chunks have about 1 MiB.
constexpr int kMaxRawMessageBytes = 8 << 20;
constexpr int kKeepaliveMs = 10'000;
// A connection attempt is given up after so long, if nothing answers at all.
constexpr int kConnectAttemptMs = 3'000;

// From here on, what is sent is spread for the distance, and what comes may be sent ahead as far as gRPC's
// estimate goes.
constexpr std::chrono::microseconds kFar{1'000};
constexpr int kMeasurements = 3;
// What all clients together try to have on its way, as if this were the speed of the network. That of a fast
// one, twice: half of the time a stream waits for the answer to its last message.
constexpr double kBytesPerMicrosecond = 5'000;
// Of all clients; so much of each may have to find room in the server's memory if its disk is slow.
constexpr uint64_t kMostAheadBytes = 64 << 20;

// The address as gRPC's name of a target. A numeric one is said to be one: else gRPC sends it through its
// resolver's thread, at each connection.
std::string TargetOf(const std::string& server) {
  const std::string host = server.substr(0, server.rfind(':'));
  in_addr ipv4;
  if (::inet_pton(AF_INET, host.c_str(), &ipv4) == 1) return StrCat("ipv4:", server);
  in6_addr ipv6;
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed && ::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &ipv6) == 1) {
    return StrCat("ipv6:", server);
  }
  return StrCat("dns:///", server);
}

std::shared_ptr<grpc::Channel> NewChannel(const std::string& server, int max_receive_bytes, bool far) {
  grpc::ChannelArguments args;
  args.SetMaxSendMessageSize(static_cast<int>(kMaxRequestBytes));
  args.SetMaxReceiveMessageSize(max_receive_bytes);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, far ? 1 : 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectAttemptMs);
  // Without it, channels to one server share one TCP connection, in the whole process.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // gRPC's own retries would keep copies of what is sent; this library knows better what to send again.
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  return grpc::CreateCustomChannel(TargetOf(server), grpc::InsecureChannelCredentials(), args);
}

}  // namespace

SendPlan SendPlanFor(std::chrono::microseconds round_trip, size_t threads, uint32_t clients) {
  // What is shorter says more about the machine's load.
  const double far_us = round_trip < kFar ? 0 : static_cast<double>(round_trip.count());
  const double on_the_way = kBytesPerMicrosecond * far_us;
  const uint64_t ahead_bytes =
      static_cast<uint64_t>(std::min(on_the_way, static_cast<double>(kMostAheadBytes))) / clients;
  const auto pieces = [](uint64_t bytes, uint64_t of_bytes) { return (bytes + of_bytes - 1) / of_bytes; };
  return {.streams = std::max<size_t>(threads, pieces(ahead_bytes, kMaxChunkBytes)),
          .body_bytes = std::clamp<uint64_t>(pieces(ahead_bytes / threads, kFrameBodyBytes), 1,
                                             kMaxChunkBytes / kFrameBodyBytes) *
                        kFrameBodyBytes};
}

absl::StatusOr<std::shared_ptr<Connection>> Connection::Make(const std::string& server) {
  const size_t colon = server.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(server.substr(colon + 1), &port) ||
      port == 0 || port > 65535) {
    return absl::InvalidArgumentError(
        StrCat("server \"", Printable(server), "\": expected \"host:port\", as in \"127.0.0.1:7070\""));
  }
  return std::shared_ptr<Connection>(new Connection(server));
}

void Connection::Took(std::chrono::steady_clock::duration duration) {
  const int64_t took_us = std::chrono::ceil<std::chrono::microseconds>(duration).count();
  int64_t known_us = round_trip_us_;
  while ((known_us == 0 || took_us < known_us) && !round_trip_us_.compare_exchange_weak(known_us, took_us)) {
  }
}

void Connection::MeasureRoundTrip(const Deadline& deadline) {
  const auto may_be_far = [this] { return round_trip() >= kFar || round_trip().count() == 0; };
  // A busy machine makes a short way look long, but not every time.
  for (int i = 0; i < kMeasurements && may_be_far(); ++i) {
    // A server that does not know the call leaves the distance as it was known before.
    if (!Call("GetLocalSocket", &v1::Store::Stub::GetLocalSocket, v1::LocalSocketRequest(), deadline).ok()) {
      return;
    }
  }
}

void Connection::EnsureControl() {
  if (control_ != nullptr) return;
  control_ = NewChannel(server_, kMaxAnswerBytes, false);
  coordinator_ = v1::Coordinator::NewStub(control_);
  store_ = v1::Store::NewStub(control_);
}

std::shared_ptr<grpc::Channel> Connection::ControlChannel() {
  MutexLock lock(&mu_);
  EnsureControl();
  return control_;
}

std::shared_ptr<v1::Coordinator::Stub> Connection::GetStub(v1::Coordinator::Stub*) {
  MutexLock lock(&mu_);
  EnsureControl();
  return coordinator_;
}

std::shared_ptr<v1::Store::Stub> Connection::GetStub(v1::Store::Stub*) {
  MutexLock lock(&mu_);
  EnsureControl();
  return store_;
}

std::shared_ptr<grpc::Channel> Connection::DataChannel(size_t index) {
  MutexLock lock(&mu_);
  if (data_.size() <= index) data_.resize(index + 1);
  if (data_[index] == nullptr) data_[index] = NewChannel(server_, kMaxRawMessageBytes, round_trip() >= kFar);
  return data_[index];
}

void Connection::ResetControl() {
  std::shared_ptr<grpc::Channel> control;
  std::shared_ptr<v1::Coordinator::Stub> coordinator;
  std::shared_ptr<v1::Store::Stub> store;
  // They end outside the lock: closing a channel may call into this library (a slice that it drops).
  MutexLock lock(&mu_);
  control.swap(control_);
  coordinator.swap(coordinator_);
  store.swap(store_);
}

void Connection::ResetData(size_t index) {
  std::shared_ptr<grpc::Channel> channel;
  MutexLock lock(&mu_);
  if (index < data_.size()) channel.swap(data_[index]);
}

void Connection::Reset() {
  ResetControl();
  std::vector<std::shared_ptr<grpc::Channel>> data;
  MutexLock lock(&mu_);
  data.swap(data_);
}

absl::Status Connection::GaveUp(const absl::Status& why) {
  const std::string_view check =
      absl::IsUnavailable(why) ? "" : " (is eskerd running there, and is the address right?)";
  return absl::UnavailableError(StrCat(MessageOf(why), check, "; tried until the time limit"));
}

}  // namespace esker
