#include "data.h"

#include <xxhash.h>

#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace esker::example {

absl::StatusOr<DataLoader> DataLoader::Open(const std::string& path, uint64_t seed) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": can't be read: name a text file with --text"));
  const uint64_t least = kContext + kBatch;
  if (text.size() <= least) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds ", text.size(), " bytes: a text of more than ", least, " is needed"));
  }
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= kVocabulary) c = '?';
  }
  return DataLoader(std::move(text), seed);
}

DataLoader::DataLoader(std::string text, uint64_t seed)
    : text_(std::move(text)),
      text_hash_(XXH3_64bits(text_.data(), text_.size())),
      seed_(seed),
      random_(seed) {
  Shuffle();
}

void DataLoader::Shuffle() {
  order_.resize(text_.size() - kContext);
  std::iota(order_.begin(), order_.end(), 0);
  std::mt19937_64 random(seed_ + 1 + epoch_);
  for (size_t i = order_.size() - 1; i > 0; --i) std::swap(order_[i], order_[random() % (i + 1)]);
}

Batch DataLoader::Next() {
  Batch batch;
  for (uint64_t b = 0; b < kBatch; ++b) {
    if (cursor_ == order_.size()) {
      ++epoch_;
      cursor_ = 0;
      Shuffle();
    }
    const char* window = text_.data() + order_[cursor_++];
    std::memcpy(batch.context[b].data(), window, kContext);
    batch.next[b] = static_cast<uint8_t>(window[kContext]);
    for (uint8_t& character : batch.context[b]) {
      const uint64_t draw = random_();
      if (draw % 50 == 0) character = static_cast<uint8_t>((draw >> 32) % kVocabulary);
    }
  }
  return batch;
}

std::string DataLoader::Position() const { return absl::StrCat(epoch_, " ", cursor_, " ", text_hash_); }

std::string DataLoader::RandomState() const {
  std::ostringstream out;
  out << random_;
  return out.str();
}

absl::Status DataLoader::Resume(std::string_view position, std::string_view random_state) {
  std::istringstream fields{std::string(position)};
  uint64_t epoch = 0, cursor = 0, text_hash = 0;
  if (!(fields >> epoch >> cursor >> text_hash)) {
    return absl::DataLossError(
        absl::StrCat("the loader's position '", std::string(position),
                     "' is not three numbers: was this checkpoint saved by another program?"));
  }
  if (text_hash != text_hash_ || cursor > order_.size()) {
    return absl::FailedPreconditionError(
        "the checkpoint was trained on another text: give the same --text, or another --run");
  }
  epoch_ = epoch;
  cursor_ = cursor;
  Shuffle();
  std::istringstream in{std::string(random_state)};
  if (!(in >> random_)) return absl::DataLossError("the random generator's saved state can't be read");
  return absl::OkStatus();
}

}  // namespace esker::example
