#include "tools/save_input.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "tools/files.h"

namespace esker {
namespace {

namespace fs = std::filesystem;

class InputReader {
 public:
  absl::Status Add(const std::string& path);
  SaveInput Take() { return std::move(input_); }

 private:
  absl::Status AddFile(const std::string& path);
  absl::Status AddMetadata(const SafetensorsFile& file);
  absl::Status AddIndexed(const std::string& index_path);
  absl::Status AddDirectory(const std::string& path);

  SaveInput input_;
  std::map<std::string, std::string> file_of_tensor_;
  std::map<std::string, std::string> metadata_;
};

absl::Status InputReader::Add(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return AddDirectory(path);
  return absl::EndsWith(path, ".json") ? AddIndexed(path) : AddFile(path);
}

absl::Status InputReader::AddFile(const std::string& path) {
  ESKER_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const SafetensorsEntry& entry : file->entries()) {
    const SafetensorsTensor& tensor = entry.tensor;
    if (const auto [known, is_new] = file_of_tensor_.emplace(tensor.name, path); !is_new) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(tensor.name), "\" is in ",
                                                     known->second, " and in ", path, ": save one of them"));
    }
    input_.tensors.push_back(
        {WholeTensor(tensor.name, tensor.type, tensor.shape), file->Bytes(entry).data()});
    input_.raw_bytes += tensor.bytes();
  }
  ESKER_RETURN_IF_ERROR(AddMetadata(*file));
  input_.files.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status InputReader::AddMetadata(const SafetensorsFile& file) {
  for (const auto& [name, text] : file.metadata()) {
    const auto [known, is_new] = metadata_.emplace(name, text);
    if (is_new) {
      input_.metadata.emplace_back(name, text);
    } else if (known->second != text) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": __metadata__ \"", Printable(name),
                       "\" is not what a file before it says: save the files as checkpoints of their own"));
    }
  }
  return absl::OkStatus();
}

// The first tensor that the index places otherwise than the files do.
absl::Status CheckPlaces(const WeightMap& weight_map, const std::vector<std::string>& file_names,
                         const std::vector<const SafetensorsFile*>& files, const std::string& index_path) {
  std::set<std::pair<std::string, std::string>> found;
  for (size_t i = 0; i < files.size(); ++i) {
    for (const SafetensorsEntry& entry : files[i]->entries()) {
      const std::string& name = entry.tensor.name;
      if (!weight_map.contains(name)) {
        return absl::InvalidArgumentError(absl::StrCat(files[i]->path(), ": tensor \"", Printable(name),
                                                       "\" is not in the weight_map of ", index_path,
                                                       ": one of the two is of another model"));
      }
      found.emplace(name, file_names[i]);
    }
  }
  for (const auto& [name, file] : weight_map) {
    if (found.contains({name, file})) continue;
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor \"", Printable(name),
                                                   "\" is not in the file ", Printable(file),
                                                   " as weight_map says"));
  }
  return absl::OkStatus();
}

absl::Status InputReader::AddIndexed(const std::string& index_path) {
  ESKER_ASSIGN_OR_RETURN(const ByteView mapping, MapForReading(index_path));
  const absl::StatusOr<WeightMap> weight_map = ParseShardIndex(AsText(mapping), index_path);
  Unmap(mapping);
  ESKER_RETURN_IF_ERROR(weight_map.status());
  std::set<std::string> names;
  for (const auto& [tensor, file] : *weight_map) names.insert(file);
  const size_t first = input_.files.size();
  for (const std::string& name : names) {
    const absl::Status added = AddFile((fs::path(index_path).parent_path() / name).string());
    if (!added.ok()) return Annotate(added, index_path);
  }
  std::vector<const SafetensorsFile*> files;
  for (size_t i = first; i < input_.files.size(); ++i) files.push_back(input_.files[i].get());
  return CheckPlaces(*weight_map, {names.begin(), names.end()}, files, index_path);
}

absl::Status InputReader::AddDirectory(const std::string& path) {
  std::vector<std::string> indexes;
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (absl::EndsWith(name, ToAbsl(kShardIndexSuffix))) indexes.push_back(name);
    if (absl::EndsWith(name, ".safetensors")) files.push_back(name);
  }
  if (error) return FileError(error.value(), StrCat("reading ", path));
  if (indexes.size() == 1) return AddIndexed((fs::path(path) / indexes[0]).string());
  if (indexes.empty() && files.size() == 1) return AddFile((fs::path(path) / files[0]).string());
  if (indexes.empty() && files.empty()) {
    return absl::InvalidArgumentError(
        path + ": a directory with neither safetensors files nor the .metadata of a DCP checkpoint");
  }
  std::vector<std::string>& several = indexes.empty() ? files : indexes;
  std::sort(several.begin(), several.end());
  return absl::InvalidArgumentError(
      absl::StrCat(path, " holds several models, or one without an index: name the files that you mean of ",
                   absl::StrJoin(several, ", ")));
}

}  // namespace

absl::StatusOr<SaveInput> ReadSaveInput(const std::vector<std::string>& paths) {
  InputReader reader;
  for (const std::string& path : paths) ESKER_RETURN_IF_ERROR(reader.Add(path));
  return reader.Take();
}

}  // namespace esker
