// The formats that only PyTorch can read and write: files of torch.save, and the directories of
// torch.distributed.checkpoint (DCP). The Python package does it (esker.interchange); this hands over to it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace esker {

enum class Format { kSafetensors, kTorch, kDcp };

// By the content: a directory with a .metadata is DCP's; a file that begins as a zip archive or a pickle is
// torch.save's; everything else is taken for safetensors, whose reader says what is wrong with it. kNotFound,
// kPermissionDenied.
absl::StatusOr<Format> DetectFormat(const std::string& path);

// "safetensors", "torch", "dcp".
std::optional<Format> FormatNamed(const std::string& name);

// Becomes `python -m esker.interchange ARGUMENTS`, which prints and exits as a command of `esker` does:
// returns only if that fails. The Python is $ESKER_PYTHON, which the package's own `esker` sets, else the
// python3 on the PATH. kUnimplemented if it lacks esker or torch.
absl::Status BecomeInterchange(const std::vector<std::string>& arguments);

}  // namespace esker
