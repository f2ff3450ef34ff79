// Macros for functions that return absl::Status or absl::StatusOr, and checks that stay on in release builds.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

// Returns from the enclosing function if `expr` is not OK.
#define ESKER_RETURN_IF_ERROR(expr)                                 \
  do {                                                              \
    if (absl::Status esker_status_ = (expr); !esker_status_.ok()) { \
      return esker_status_;                                         \
    }                                                               \
  } while (false)

#define ESKER_CONCAT_INNER_(a, b) a##b
#define ESKER_CONCAT_(a, b) ESKER_CONCAT_INNER_(a, b)

// ESKER_ASSIGN_OR_RETURN(auto x, F()): declares or assigns x, or returns F()'s error.
#define ESKER_ASSIGN_OR_RETURN(lhs, expr) \
  ESKER_ASSIGN_OR_RETURN_IMPL_(ESKER_CONCAT_(esker_statusor_, __LINE__), lhs, expr)
#define ESKER_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                 \
  if (!statusor.ok()) {                                   \
    return statusor.status();                             \
  }                                                       \
  lhs = std::move(statusor).value()

// A programmer's error: prints the place and aborts, in release builds too.
#define ESKER_CHECK(condition)                                                           \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

namespace esker {

// `status` with `context` put before its message; OK stays OK. For adding where an error happened.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(std::string(context), ": ", status.message()));
}

}  // namespace esker
