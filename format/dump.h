// The format's second reader: prints any bytes that Esker writes, for `esker dump` and for people in trouble.
// It decodes by itself what docs/format.md says, so that a mistake in the encoders shows.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "format/base/bytes.h"

namespace esker {

// Describes the envelope, segment header or chunk record that `bytes` begins with, as JSON text with one
// field a line, in the order of the format. A damaged field is described with what was expected, not an
// error. kInvalidArgument if the magic number is none of Esker's.
absl::StatusOr<std::string> DumpBytes(ByteView bytes);

// Describes a segment file: its header, then a line for each record found by walking the record headers:
// offset, hash, dtype, codec, lengths, and whether CRCs (with `deep`, also the raw hash) hold. Goes on after
// a damaged record at the next block. Calls `line` for each line of text.
absl::Status DumpSegmentFile(const std::string& path, bool deep,
                             const std::function<void(const std::string&)>& line);

}  // namespace esker
