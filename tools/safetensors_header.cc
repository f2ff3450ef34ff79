#include "tools/safetensors_header.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "format/base/text.h"
#include "format/names.h"
#include "nlohmann/json.hpp"

namespace esker {
namespace {

constexpr std::string_view kMetadata = "__metadata__";

// What the next event belongs to.
enum class Place {
  kStart,     // before the outermost object
  kTop,       // in it: a tensor's name or __metadata__ comes
  kTensor,    // in a tensor's object, or about to enter it
  kMetadata,  // in __metadata__, or about to enter it
  kArray,     // in the array of a tensor's field
  kEnd,
};

class HeaderEvents final : public nlohmann::json_sax<nlohmann::json> {
 public:
  // `top`: kStart for a whole header, kMetadata for the object of __metadata__.
  HeaderEvents(Place start, RawHeader* header)
      : place_(start), whole_(start == Place::kStart), header_(header) {}

  const std::string& error() const { return error_; }

  bool key(string_t& name) override {
    if (place_ == Place::kTop) return TopKey(std::move(name));
    if (place_ == Place::kMetadata) return MetadataKey(std::move(name));
    field_ = std::move(name);
    if (field_ == "dtype" || field_ == "shape" || field_ == "data_offsets") {
      return FieldIsNew() || Fail("stands twice");
    }
    return Fail("is not a field of safetensors: expected dtype, shape and data_offsets");
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
      return true;
    }
    if ((place_ == Place::kTensor || place_ == Place::kMetadata) && !entered_) {
      entered_ = true;
      return true;
    }
    return WrongType("an object");
  }

  bool end_object() override {
    if (place_ == Place::kTop || !whole_) {
      place_ = Place::kEnd;
      return true;
    }
    field_.clear();
    if (place_ == Place::kTensor) {
      const RawTensor& tensor = header_->tensors.back();
      if (!tensor.dtype) return Fail("has no dtype");
      if (!tensor.shape) return Fail("has no shape");
      if (!tensor.data_offsets) return Fail("has no data_offsets");
    }
    place_ = Place::kTop;
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::kMetadata && entered_) {
      header_->metadata.back().second = std::move(text);
      return true;
    }
    if (place_ == Place::kTensor && entered_ && field_ == "dtype") {
      header_->tensors.back().dtype = std::move(text);
      return true;
    }
    return WrongType("a string");
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || !entered_ || field_ == "dtype") return WrongType("an array");
    place_ = Place::kArray;
    Numbers().emplace();
    return true;
  }
  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (place_ != Place::kArray) return WrongType("a number");
    Numbers()->push_back(number);
    return true;
  }
  bool number_integer(number_integer_t) override { return WrongType("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override {
    return WrongType(absl::StrCat("the number ", Printable(text, 40)));
  }
  bool null() override { return WrongType("null"); }
  bool boolean(bool) override { return WrongType("a boolean"); }
  bool binary(binary_t&) override { return WrongType("binary data"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // The library's message begins with its own tag, and quotes the last bytes that it read.
    const std::string_view what = error.what();
    const size_t detail = what.rfind("; last read");
    error_ = StrCat("is not valid JSON at its byte ", position, ": ", Printable(what.substr(0, detail), 160));
    return false;
  }

 private:
  bool TopKey(std::string name) {
    entered_ = false;
    field_.clear();
    if (!names_.insert(name).second) {
      name_ = std::move(name);
      return Fail("stands twice");
    }
    name_ = name;
    if (name == kMetadata) {
      place_ = Place::kMetadata;
    } else {
      place_ = Place::kTensor;
      header_->tensors.emplace_back().name = std::move(name);
    }
    return true;
  }

  bool MetadataKey(std::string name) {
    field_ = name;
    if (!metadata_names_.insert(name).second) return Fail("stands twice");
    header_->metadata.emplace_back(std::move(name), "");
    return true;
  }

  bool FieldIsNew() {
    const RawTensor& tensor = header_->tensors.back();
    if (field_ == "dtype") return !tensor.dtype;
    return field_ == "shape" ? !tensor.shape : !tensor.data_offsets;
  }

  std::optional<std::vector<uint64_t>>& Numbers() {
    RawTensor& tensor = header_->tensors.back();
    return field_ == "shape" ? tensor.shape : tensor.data_offsets;
  }

  std::string Expected() const {
    if (place_ == Place::kStart) return "an object of tensors";
    if (!entered_) return "an object";
    if (place_ == Place::kMetadata || field_ == "dtype") return "a string";
    return "an array of whole numbers from 0 to 2^64 - 1";
  }

  bool WrongType(std::string_view found) { return Fail(StrCat("is ", found, ": expected ", Expected())); }

  // `what` follows the name of the tensor and field that is being read.
  bool Fail(std::string_view what) {
    std::string where;
    if (name_ == kMetadata || !whole_) {
      where = "__metadata__";
    } else if (!name_.empty() || place_ != Place::kStart) {
      where = absl::StrCat("tensor \"", Printable(name_), "\"");
    }
    if (!field_.empty()) absl::StrAppend(&where, where.empty() ? "" : ": ", "\"", Printable(field_), "\"");
    error_ = where.empty() ? std::string(what) : StrCat(where, " ", what);
    return false;
  }

  Place place_;
  const bool whole_;
  RawHeader* const header_;
  bool entered_ = false;  // the `{` of the tensor or of __metadata__ was read
  std::string name_;      // of the tensor
  std::string field_;
  absl::flat_hash_set<std::string> names_;
  absl::flat_hash_set<std::string> metadata_names_;
  std::string error_;
};

absl::Status Parse(std::string_view json, Place start, RawHeader* header) {
  HeaderEvents events(start, header);
  if (nlohmann::json::sax_parse(json.begin(), json.end(), &events)) return absl::OkStatus();
  return absl::InvalidArgumentError(events.error());
}

}  // namespace

absl::Status ParseSafetensorsJson(std::string_view json, RawHeader* header) {
  return Parse(json, Place::kStart, header);
}

absl::Status ParseMetadataJson(std::string_view json, SafetensorsMetadata* metadata) {
  RawHeader header;
  absl::Status status = Parse(json, Place::kMetadata, &header);
  *metadata = std::move(header.metadata);
  return status;
}

}  // namespace esker
