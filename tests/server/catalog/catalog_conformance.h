// What every Catalog must do: one suite, run on each implementation by INSTANTIATE_TEST_SUITE_P over a
// factory (rocks_catalog_test.cc shows how).
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "server/catalog/catalog.h"

namespace esker::testing {

// One catalog's data, which outlives the Catalog objects that are opened on it.
class CatalogData {
 public:
  virtual ~CatalogData() = default;
  // Opens it; the Catalog that was opened before is gone by then.
  virtual std::unique_ptr<Catalog> Open() = 0;
};

struct CatalogImplementation {
  std::string name;
  std::function<std::unique_ptr<CatalogData>()> make;  // empty data
};
inline void PrintTo(const CatalogImplementation& implementation, std::ostream* out) {
  *out << implementation.name;
}

class CatalogConformance : public ::testing::TestWithParam<CatalogImplementation> {
 protected:
  void SetUp() override { catalog_ = data_->Open(); }
  void Reopen() {
    catalog_.reset();
    catalog_ = data_->Open();
  }
  // Sets a key whatever it was; returns its new version.
  uint64_t Set(const std::string& key, const std::string& value);
  // The key's entry, or one with version 0.
  CatalogEntry Find(const std::string& key);
  // "key=value key=value" of all that List gives.
  std::string Listed(const std::string& prefix);

  const std::unique_ptr<CatalogData> data_ = GetParam().make();
  std::unique_ptr<Catalog> catalog_;
};

}  // namespace esker::testing
