// ASSERT_OK / EXPECT_OK for absl::Status and StatusOr, and EXPECT_STATUS(code, text) for errors.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/status.h"

namespace esker::testing {

inline absl::Status ToStatus(const absl::Status& status) { return status; }
template <typename T>
absl::Status ToStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

}  // namespace esker::testing

#define ASSERT_OK(expr)                                             \
  do {                                                              \
    const absl::Status esker_s_ = ::esker::testing::ToStatus(expr); \
    ASSERT_TRUE(esker_s_.ok()) << esker_s_.ToString();              \
  } while (false)
#define EXPECT_OK(expr)                                             \
  do {                                                              \
    const absl::Status esker_s_ = ::esker::testing::ToStatus(expr); \
    EXPECT_TRUE(esker_s_.ok()) << esker_s_.ToString();              \
  } while (false)
// The error has this code, and its message contains this text.
#define EXPECT_STATUS(expr, expected_code, text)                              \
  do {                                                                        \
    const absl::Status esker_s_ = ::esker::testing::ToStatus(expr);           \
    EXPECT_EQ(esker_s_.code(), expected_code) << esker_s_.ToString();         \
    EXPECT_THAT(std::string(esker_s_.message()), ::testing::HasSubstr(text)); \
  } while (false)
// ASSERT_OK_AND_ASSIGN(auto x, F()).
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_IMPL_(ESKER_CONCAT_(esker_assign_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_IMPL_(statusor, lhs, expr)       \
  auto statusor = (expr);                                     \
  ASSERT_TRUE(statusor.ok()) << statusor.status().ToString(); \
  lhs = std::move(statusor).value()
