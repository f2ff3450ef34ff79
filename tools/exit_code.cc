#include "tools/exit_code.h"

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "format/base/text.h"

namespace esker {
namespace {

struct Row {
  ExitCode code;
  std::string_view name;
  std::string_view meaning;
};

constexpr Row kRows[] = {
    {ExitCode::kOk, "ok", "ok"},
    {ExitCode::kFailed, "failed", "failed"},
    {ExitCode::kUsage, "usage", "usage: an option, a name or an input file is not valid"},
    {ExitCode::kNotFound, "not_found", "not found: no such run, step, tensor or file"},
    {ExitCode::kDamaged, "damaged", "damaged data: what is stored, or an input file, is not intact"},
    {ExitCode::kUnreachable, "unreachable", "server not reachable, or it did not answer in time"},
    {ExitCode::kRefused, "refused", "refused: exists, pinned, fenced, no permission, disk full"},
};

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return ExitCode::kUsage;
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kDataLoss:
      return ExitCode::kDamaged;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kUnreachable;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
      return ExitCode::kRefused;
    default:
      return ExitCode::kFailed;
  }
}

std::string_view ExitCodeName(ExitCode code) {
  for (const Row& row : kRows) {
    if (row.code == code) return row.name;
  }
  return "failed";
}

std::string ExitCodeHelp() {
  std::string text = "Exit codes:\n";
  for (const Row& row : kRows) {
    absl::StrAppendFormat(&text, "  %d  %s\n", static_cast<int>(row.code), ToAbsl(row.meaning));
  }
  return text;
}

std::string ErrorLine(const absl::Status& status, std::string_view server) {
  std::string line(status.message());
  if (line.empty()) line = absl::StatusCodeToString(status.code());
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  if (ExitCodeOf(status) != ExitCode::kUnreachable || absl::StrContains(line, "--server")) return line;
  if (!absl::StrContains(line, "server ")) line = StrCat("server ", server, ": ", line);
  return StrCat(line, " (--server or ESKER_SERVER names another)");
}

}  // namespace esker
