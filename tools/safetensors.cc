#include "tools/safetensors.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "absl/container/flat_hash_set.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/box.h"
#include "format/dtype.h"
#include "format/names.h"
#include "nlohmann/json.hpp"
#include "tools/files.h"
#include "tools/safetensors_header.h"

namespace esker {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kHeaderAlignment = 8;

// The order in which the official library puts dtypes: a later one comes first in the file.
constexpr ElementType kDTypeOrder[] = {
    ElementType::kBool,   ElementType::kU8,     ElementType::kI8,         ElementType::kF8E5M2,
    ElementType::kF8E4M3, ElementType::kF8E8M0, ElementType::kF8E4M3FNUZ, ElementType::kF8E5M2FNUZ,
    ElementType::kI16,    ElementType::kU16,    ElementType::kF16,        ElementType::kBF16,
    ElementType::kI32,    ElementType::kU32,    ElementType::kF32,        ElementType::kC64,
    ElementType::kF64,    ElementType::kI64,    ElementType::kU64,        ElementType::kC128,
};

size_t DTypeRank(ElementType type) {
  return static_cast<size_t>(std::find(std::begin(kDTypeOrder), std::end(kDTypeOrder), type) -
                             std::begin(kDTypeOrder));
}

absl::StatusOr<ElementType> TypeFromName(const std::string& name) {
  const std::optional<DType> dtype = DTypeFromName(name);
  if (!dtype || *dtype == DType::kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype \"", Printable(name, 40), "\" is not one that Esker knows"));
  }
  return static_cast<ElementType>(*dtype);
}

absl::StatusOr<SafetensorsEntry> CheckTensor(RawTensor raw, uint64_t data_bytes) {
  ESKER_RETURN_IF_ERROR(ValidateTensorName(raw.name));
  SafetensorsEntry entry;
  ESKER_ASSIGN_OR_RETURN(entry.tensor.type, TypeFromName(*raw.dtype));
  entry.tensor.shape = *std::move(raw.shape);
  ESKER_RETURN_IF_ERROR(
      ValidateBox(WholeBox(entry.tensor.shape), entry.tensor.shape, ElementSize(entry.tensor.type)));
  if (raw.data_offsets->size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets has ", raw.data_offsets->size(), " numbers: expected begin and end"));
  }
  entry.begin = (*raw.data_offsets)[0];
  entry.end = (*raw.data_offsets)[1];
  if (entry.begin > entry.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "] end before they begin"));
  }
  if (entry.end - entry.begin != entry.tensor.bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "] are ", entry.end - entry.begin,
                     " bytes, but its shape and dtype need ", entry.tensor.bytes()));
  }
  if (entry.end > data_bytes) {
    return absl::DataLossError(absl::StrCat("data_offsets [", entry.begin, ", ", entry.end,
                                            "] end behind the file's ", data_bytes,
                                            " bytes of data: it is cut short, or the offsets are wrong"));
  }
  entry.tensor.name = std::move(raw.name);
  return entry;
}

// The entries are in the order of their bytes.
absl::Status CheckCoverage(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t expected = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", Printable(entry.tensor.name), "\" begins at ", entry.begin,
                       ", but the tensors before it end at ", expected, ": ",
                       entry.begin < expected ? "they overlap" : "there is a gap"));
    }
    expected = entry.end;
  }
  if (expected == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(data_bytes - expected, " bytes behind the last tensor belong to none"));
}

absl::StatusOr<std::string_view> HeaderJson(ByteView file) {
  if (file.size() < kLengthBytes) {
    return absl::DataLossError(
        absl::StrCat("has ", file.size(), " bytes: not a safetensors file, or cut short"));
  }
  const auto header_bytes = LoadLittle<uint64_t>(file.data());
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("its header would be ", header_bytes,
                                                   " bytes long (at most ", kMaxSafetensorsHeaderBytes,
                                                   "): not a safetensors file"));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::DataLossError(absl::StrCat("its header should be ", header_bytes, " bytes long, but only ",
                                            file.size() - kLengthBytes,
                                            " bytes follow: the file is cut short"));
  }
  const std::string_view json = AsText(file.subspan(kLengthBytes, header_bytes));
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError("its header does not begin with '{': not a safetensors file");
  }
  // The JSON library takes a NUL for the end of its input, and would not see what follows.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("its header is not valid JSON: NUL at its byte ", nul));
  }
  return json;
}

absl::StatusOr<SafetensorsHeader> Parse(ByteView file) {
  ESKER_ASSIGN_OR_RETURN(const std::string_view json, HeaderJson(file));
  SafetensorsHeader header;
  header.data_offset = kLengthBytes + json.size();
  RawHeader raw;
  ESKER_RETURN_IF_ERROR(Annotate(ParseSafetensorsJson(json, &raw), "its header"));
  header.metadata = std::move(raw.metadata);
  const uint64_t data_bytes = file.size() - header.data_offset;
  for (RawTensor& tensor : raw.tensors) {
    const std::string where = absl::StrCat("tensor \"", Printable(tensor.name), "\"");
    absl::StatusOr<SafetensorsEntry> entry = CheckTensor(std::move(tensor), data_bytes);
    if (!entry.ok()) return Annotate(entry.status(), where);
    header.entries.push_back(*std::move(entry));
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  ESKER_RETURN_IF_ERROR(CheckCoverage(header.entries, data_bytes));
  return header;
}

absl::Status CheckNames(const std::vector<SafetensorsTensor>& tensors) {
  absl::flat_hash_set<std::string_view> names;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.name == "__metadata__") {
      return absl::InvalidArgumentError(
          "a tensor is named __metadata__, which safetensors keeps for itself: it can't be in such a file");
    }
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(tensor.name), "\" stands twice"));
    }
  }
  return absl::OkStatus();
}

// As the official library orders tensors.
std::vector<size_t> FileOrder(const std::vector<SafetensorsTensor>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const size_t rank_a = DTypeRank(tensors[a].type);
    const size_t rank_b = DTypeRank(tensors[b].type);
    return rank_a != rank_b ? rank_a > rank_b : tensors[a].name < tensors[b].name;
  });
  return order;
}

std::string JsonString(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace

uint64_t SafetensorsTensor::bytes() const { return WholeTensor(name, type, shape).bytes(); }

absl::StatusOr<SafetensorsHeader> ParseSafetensors(ByteView file, const std::string& path) {
  absl::StatusOr<SafetensorsHeader> header = Parse(file);
  if (!header.ok()) return Annotate(header.status(), path);
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  ESKER_ASSIGN_OR_RETURN(const ByteView mapping, MapForReading(path));
  // Unmaps it on errors too.
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, mapping));
  ESKER_ASSIGN_OR_RETURN(file->header_, ParseSafetensors(mapping, path));
  return file;
}

SafetensorsFile::~SafetensorsFile() { Unmap(mapping_); }

ByteView SafetensorsFile::Bytes(const SafetensorsEntry& entry) const {
  return mapping_.subspan(header_.data_offset + entry.begin, entry.end - entry.begin);
}

absl::StatusOr<SafetensorsLayout> LayOutSafetensors(const std::vector<SafetensorsTensor>& tensors,
                                                    const SafetensorsMetadata& metadata) {
  ESKER_RETURN_IF_ERROR(CheckNames(tensors));
  std::string json = "{";
  if (!metadata.empty()) absl::StrAppend(&json, "\"__metadata__\":", MetadataToJson(metadata));
  SafetensorsLayout layout;
  layout.offsets.resize(tensors.size());
  uint64_t end = 0;
  for (const size_t i : FileOrder(tensors)) {
    const SafetensorsTensor& tensor = tensors[i];
    layout.offsets[i] = end;
    end += tensor.bytes();
    absl::StrAppend(&json, json.size() > 1 ? "," : "", JsonString(tensor.name), ":{\"dtype\":\"",
                    ToAbsl(ElementTypeName(tensor.type)),
                    "\",\"shape\":", nlohmann::json(tensor.shape).dump(), ",\"data_offsets\":[",
                    layout.offsets[i], ",", end, "]}");
  }
  json.push_back('}');
  json.resize(RoundUp(json.size(), kHeaderAlignment), ' ');
  if (json.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the names and shapes of ", tensors.size(), " tensors take ", json.size(),
                     " bytes, but a safetensors header at most ", kMaxSafetensorsHeaderBytes,
                     ": restore fewer with --only"));
  }
  layout.head.resize(kLengthBytes);
  StoreLittle<uint64_t>(reinterpret_cast<std::byte*>(layout.head.data()), json.size());
  layout.head += json;
  for (uint64_t& offset : layout.offsets) offset += layout.head.size();
  layout.file_bytes = layout.head.size() + end;
  return layout;
}

std::string MetadataToJson(const SafetensorsMetadata& metadata) {
  std::string json = "{";
  for (const auto& [name, text] : metadata) {
    absl::StrAppend(&json, json.size() > 1 ? "," : "", JsonString(name), ":", JsonString(text));
  }
  return json + "}";
}

absl::StatusOr<SafetensorsMetadata> MetadataFromJson(std::string_view json) {
  SafetensorsMetadata metadata;
  ESKER_RETURN_IF_ERROR(ParseMetadataJson(json, &metadata));
  return metadata;
}

}  // namespace esker
