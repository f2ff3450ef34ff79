// States and options for the client's tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "esker/esker.h"
#include "format/box.h"
#include "tests/client/fake_server.h"

namespace esker::testing {

// A state with the memory behind it.
class StateBuilder {
 public:
  explicit StateBuilder(uint64_t seed) : random_(seed) {}

  // A tensor with random content; returns its memory.
  std::vector<uint8_t>& Add(const TensorBox& box) {
    std::vector<uint8_t>& data = memory_.emplace_back(box.bytes());
    Refill(&data);
    state_.tensors.push_back({box, data.data()});
    return data;
  }
  std::vector<uint8_t>& Add(const TensorBox& box, std::vector<uint8_t> content) {
    std::vector<uint8_t>& data = memory_.emplace_back(std::move(content));
    state_.tensors.push_back({box, data.data()});
    return data;
  }
  void AddItem(const std::string& name, const std::string& bytes) {
    items_.push_back(bytes);
    state_.items.push_back({name, items_.back()});
  }
  void Refill(std::vector<uint8_t>* data) {
    for (size_t at = 0; at < data->size(); at += sizeof(uint64_t)) {
      const uint64_t word = random_();
      std::memcpy(data->data() + at, &word, std::min(sizeof(word), data->size() - at));
    }
  }

  State& state() { return state_; }
  // The content of tensor `i`.
  const std::vector<uint8_t>& data(size_t i) const { return memory_[i]; }

 private:
  std::mt19937_64 random_;
  std::deque<std::vector<uint8_t>> memory_;
  std::deque<std::string> items_;
  State state_;
};

// Options for rank `rank` of a run "test", small and quick.
inline CheckpointerOptions TestOptions(const FakeServer& server, uint32_t rank = 0, uint32_t world_size = 1) {
  CheckpointerOptions options;
  options.server = server.address();
  options.run = "test";
  options.rank = rank;
  options.world_size = world_size;
  options.incarnation = "first";
  options.threads = 2;
  options.chunk_bytes = 4096;
  options.connect_timeout_ms = 10'000;
  options.save_timeout_ms = 60'000;
  return options;
}

// Room for a box, filled with a pattern.
struct Room {
  explicit Room(TensorBox wanted) : box(std::move(wanted)), data(box.bytes(), 0xEE) {}
  TargetTensor target() { return {box, data.data()}; }

  TensorBox box;
  std::vector<uint8_t> data;
};

}  // namespace esker::testing
