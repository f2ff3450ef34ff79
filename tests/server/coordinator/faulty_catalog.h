// A catalog in front of another: fails changes as a lost disk or connection does, and lets a test act in the
// middle.
#pragma once

#include <functional>
#include <utility>

#include "format/base/mutex.h"
#include "server/catalog/catalog.h"

namespace esker::testing {

// Thread-safe.
class FaultyCatalog final : public Catalog {
 public:
  enum class Fault {
    kRefuse,         // the change fails and is not applied
    kApplyThenFail,  // the change is applied, but its caller is told that it failed
  };

  explicit FaultyCatalog(Catalog* real) : real_(real) {}

  // The change number `nth` from now (0: the next) fails, and then all others until Heal.
  void FailFrom(int nth, Fault fault) {
    MutexLock lock(&mu_);
    left_ = nth;
    fault_ = fault;
  }
  void Heal() {
    MutexLock lock(&mu_);
    left_ = -1;
  }
  // Called once, before the next change whose first mutation's key begins with `prefix`.
  void BeforeChangeOf(std::string prefix, std::function<void()> act) {
    MutexLock lock(&mu_);
    prefix_ = std::move(prefix);
    act_ = std::move(act);
  }
  int changes() const {
    MutexLock lock(&mu_);
    return changes_;
  }

  absl::StatusOr<std::optional<CatalogEntry>> Get(std::string_view key) const override {
    return real_->Get(key);
  }
  absl::StatusOr<std::vector<CatalogEntry>> List(std::string_view prefix) const override {
    return real_->List(prefix);
  }
  absl::StatusOr<bool> CompareAndSet(const std::vector<CatalogCondition>& conditions,
                                     const std::vector<CatalogMutation>& mutations) override {
    std::function<void()> act;
    bool fails = false;
    bool applies = true;
    {
      MutexLock lock(&mu_);
      ++changes_;
      if (!mutations.empty() && mutations[0].key.starts_with(prefix_)) act = std::exchange(act_, nullptr);
      if (left_ >= 0 && left_-- == 0) {
        fails = true;
        applies = fault_ == Fault::kApplyThenFail;
        left_ = 0;
        fault_ = Fault::kRefuse;
      }
    }
    if (act) act();
    absl::StatusOr<bool> result = applies ? real_->CompareAndSet(conditions, mutations) : false;
    if (fails) return absl::UnavailableError("injected: the catalog is gone");
    return result;
  }

 private:
  Catalog* const real_;
  mutable Mutex mu_;
  int left_ ABSL_GUARDED_BY(mu_) = -1;
  Fault fault_ ABSL_GUARDED_BY(mu_) = Fault::kRefuse;
  std::string prefix_ ABSL_GUARDED_BY(mu_);
  std::function<void()> act_ ABSL_GUARDED_BY(mu_);
  int changes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace esker::testing
