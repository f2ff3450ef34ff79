#include "format/names.h"

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/base/text.h"

namespace esker {
namespace {

constexpr size_t kMaxRunNameBytes = 128;
constexpr size_t kMaxIncarnationBytes = 256;

bool IsRunNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool IsRunNameRest(char c) { return IsRunNameStart(c) || c == '.' || c == '_' || c == '-'; }
bool IsPrintableAscii(char c) { return c >= ' ' && c <= '~'; }

// The length of the UTF-8 character that `text` begins with: 0 if it begins with none (overlong forms,
// surrogates and numbers above 0x10FFFF are none).
size_t Utf8CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) > 0x9F;
  const bool too_large = lead == 0xF4 && byte(1) > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8CharacterBytes(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string StepDigits(uint64_t step) { return absl::StrFormat("%020d", step); }

}  // namespace

absl::Status ValidateRunName(std::string_view run) {
  bool legal = !run.empty() && run.size() <= kMaxRunNameBytes && IsRunNameStart(run[0]);
  for (const char c : run) legal = legal && IsRunNameRest(c);
  if (legal) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("run name \"", Printable(run), "\" (", run.size(), " bytes): expected 1 to ", kMaxRunNameBytes,
             " of the characters a-z 0-9 . _ -, beginning with a letter or digit"));
}

absl::Status ValidateTensorName(std::string_view name) {
  const auto invalid = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        StrCat("tensor or item name \"", Printable(name), "\" (", name.size(), " bytes): ", what));
  };
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return invalid(StrCat("expected 1 to ", kMaxTensorNameBytes, " bytes"));
  }
  if (name.find('\0') != std::string_view::npos) return invalid("expected no NUL character");
  if (!IsUtf8(name)) return invalid("expected UTF-8");
  return absl::OkStatus();
}

absl::Status ValidateIncarnation(std::string_view token) {
  bool legal = !token.empty() && token.size() <= kMaxIncarnationBytes;
  for (const char c : token) legal = legal && IsPrintableAscii(c);
  if (legal) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("incarnation \"", Printable(token), "\" (", token.size(),
                                           " bytes): expected 1 to ", kMaxIncarnationBytes,
                                           " printable ASCII characters"));
}

absl::Status ValidateStep(uint64_t step) {
  if (step <= kMaxStep) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("step ", step, ": expected 0 to ", kMaxStep,
                                           " (a negative step comes out as such a large number)"));
}

absl::Status ValidateRank(uint64_t rank, uint64_t world_size) {
  if (world_size < 1 || world_size > kMaxWorldSize) {
    return absl::InvalidArgumentError(StrCat("world size ", world_size, ": expected 1 to ", kMaxWorldSize));
  }
  if (rank >= world_size) {
    return absl::InvalidArgumentError(
        StrCat("rank ", rank, ": expected 0 to ", world_size - 1, " in a world of ", world_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointName> ParseCheckpointName(std::string_view text) {
  const auto invalid = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        StrCat("checkpoint \"", Printable(text), "\": expected RUN@STEP or RUN@latest: ", what));
  };
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return invalid("there is no @");
  CheckpointName name;
  name.run = std::string(text.substr(0, at));
  if (absl::Status status = ValidateRunName(name.run); !status.ok()) return invalid(MessageOf(status));
  const std::string_view step = text.substr(at + 1);
  if (step == "latest") {
    name.latest = true;
    return name;
  }
  bool digits = !step.empty();
  for (const char c : step) digits = digits && absl::ascii_isdigit(static_cast<unsigned char>(c));
  if (!digits || !absl::SimpleAtoi(ToAbsl(step), &name.step) || name.step > kMaxStep) {
    return invalid(StrCat("the step must be a number from 0 to ", kMaxStep));
  }
  return name;
}

std::string Printable(std::string_view bytes, size_t limit) {
  std::string text;
  for (const char c : bytes) {
    if (text.size() >= limit) {
      text.append("...");
      break;
    }
    if (c == '\\' || c == '"') {
      text.push_back('\\');
      text.push_back(c);
    } else if (IsPrintableAscii(c)) {
      text.push_back(c);
    } else {
      absl::StrAppendFormat(&text, "\\x%02x", static_cast<uint8_t>(c));
    }
  }
  return text;
}

std::string RunKey(std::string_view run) { return StrCat(kRunPrefix, run); }
std::string SaveKey(std::string_view run, uint64_t step) { return StrCat(SavePrefix(run), StepDigits(step)); }
std::string CheckpointKey(std::string_view run, uint64_t step) {
  return StrCat(CheckpointPrefix(run), StepDigits(step));
}
std::string SavePrefix(std::string_view run) { return StrCat("save/", run, "/"); }
std::string CheckpointPrefix(std::string_view run) { return StrCat("ckpt/", run, "/"); }

}  // namespace esker
