// The safetensors file format, read strictly and written as the official library writes it:
//
//   u64 header bytes (little-endian) · the header, JSON, padded with spaces · the tensors' bytes, without
//   gaps
//
// Header: {"__metadata__": {name: text, …}, tensor: {"dtype": "BF16", "shape": […], "data_offsets": [begin,
// end]}, …}
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "esker/state.h"
#include "format/base/bytes.h"

namespace esker {

// A header of more bytes is refused, as by the official library.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsTensor {
  std::string name;
  ElementType type = ElementType::kF32;
  std::vector<uint64_t> shape;

  uint64_t bytes() const;
};

// Texts by name, in the order of the file.
using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

// --- reading ----------------------------------------------------------------------------------------------

struct SafetensorsEntry {
  SafetensorsTensor tensor;
  uint64_t begin = 0;  // in the data behind the header
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  SafetensorsMetadata metadata;
  uint64_t data_offset = 0;  // of the first tensor's bytes in the file
};

// Reads and checks the header of a whole file: its lengths, its JSON (no field twice, none unknown), names
// (ValidateTensorName), dtypes, shapes, and that the tensors' bytes fill the rest of the file, without gap or
// overlap. kInvalidArgument names `path`, and the tensor; kDataLoss where the file is cut short.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(ByteView file, const std::string& path);

// A file, mapped into memory. Immutable; thread-safe. If someone cuts the file short while it is open, a
// read of its bytes ends the process with SIGBUS.
class SafetensorsFile {
 public:
  // kNotFound, kPermissionDenied; kInvalidArgument if it is no regular file; errors of ParseSafetensors.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }
  // Lives as long as the file.
  ByteView Bytes(const SafetensorsEntry& entry) const;

 private:
  SafetensorsFile(std::string path, ByteView mapping) : path_(std::move(path)), mapping_(mapping) {}

  const std::string path_;
  const ByteView mapping_;
  SafetensorsHeader header_;  // constant after Open
};

// --- writing ----------------------------------------------------------------------------------------------

struct SafetensorsLayout {
  std::string head;               // the file's first bytes: length and header; a multiple of 8 bytes
  std::vector<uint64_t> offsets;  // in the file, of each of the tensors as they were given
  uint64_t file_bytes = 0;
};

// Where the tensors lie in a file: by dtype, the largest alignment first, then by name. kInvalidArgument if a
// name stands twice, is "__metadata__", or the header would be too long to be read again.
absl::StatusOr<SafetensorsLayout> LayOutSafetensors(const std::vector<SafetensorsTensor>& tensors,
                                                    const SafetensorsMetadata& metadata);

// Metadata as the JSON object that the header holds, and back (kInvalidArgument).
std::string MetadataToJson(const SafetensorsMetadata& metadata);
absl::StatusOr<SafetensorsMetadata> MetadataFromJson(std::string_view json);

}  // namespace esker
