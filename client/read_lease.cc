#include "client/read_lease.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr uint64_t kShortestRenewalMs = 100;
constexpr uint64_t kCloseTimeoutMs = 1'000;

}  // namespace

ReadLease::ReadLease(std::shared_ptr<Connection> connection, const std::string& run, uint64_t step,
                     uint64_t save_id)
    : connection_(std::move(connection)), run_(run), step_(step), save_id_(save_id) {}

absl::StatusOr<std::unique_ptr<ReadLease>> ReadLease::Open(std::shared_ptr<Connection> connection,
                                                           const std::string& run, uint64_t step,
                                                           uint64_t save_id, uint64_t timeout_ms) {
  std::unique_ptr<ReadLease> lease(new ReadLease(std::move(connection), run, step, save_id));
  ESKER_RETURN_IF_ERROR(lease->Take(Deadline::After(timeout_ms)));
  try {
    lease->renewer_ = std::thread([raw = lease.get()] { raw->RenewUntilStopped(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(StrCat("no thread to renew the read lease with: ", error.what()));
  }
  return lease;
}

ReadLease::~ReadLease() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    stop_changed_.NotifyAll();
  }
  if (!renewer_.joinable()) return;
  renewer_.join();
  v1::CloseReadRequest request;
  request.set_lease_id(id());
  // If it does not get there, the lease runs out by itself.
  const auto closed =
      connection_->Call("CloseRead", &v1::Store::Stub::CloseRead, request, Deadline::After(kCloseTimeoutMs));
  static_cast<void>(closed);
}

uint64_t ReadLease::id() const {
  MutexLock lock(&mu_);
  return id_;
}

absl::Status ReadLease::Take(const Deadline& deadline) {
  v1::OpenReadRequest request;
  request.set_run(run_);
  request.set_step(step_);
  request.set_save_id(save_id_);
  ESKER_ASSIGN_OR_RETURN(const v1::OpenReadResponse response,
                         connection_->CallUntil("OpenRead", &v1::Store::Stub::OpenRead, request, deadline));
  MutexLock lock(&mu_);
  id_ = response.lease_id();
  ttl_ms_ = response.ttl_ms();
  return absl::OkStatus();
}

absl::Status ReadLease::Refresh(const Deadline& deadline) {
  MutexLock lock(&refresh_mu_);
  v1::RenewReadRequest request;
  request.set_lease_id(id());
  const absl::Status renewed =
      connection_->CallUntil("RenewRead", &v1::Store::Stub::RenewRead, request, deadline).status();
  return absl::IsNotFound(renewed) ? Take(deadline) : renewed;
}

void ReadLease::RenewUntilStopped() {
  while (true) {
    uint64_t ttl_ms;
    {
      MutexLock lock(&mu_);
      ttl_ms = std::max(ttl_ms_, 3 * kShortestRenewalMs);
      const Deadline next = Deadline::After(ttl_ms / 3);
      while (!stopping_ && stop_changed_.WaitUntil(&mu_, next.time())) {
      }
      if (stopping_) return;
    }
    // A failure shows where it matters: at the next read. Short, so that the destructor does not wait long.
    const absl::Status refreshed = Refresh(Deadline::After(std::min<uint64_t>(ttl_ms / 3, kCloseTimeoutMs)));
    static_cast<void>(refreshed);
  }
}

}  // namespace esker
