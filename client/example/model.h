// A character-level language model, split over ranks by rows:
//
//   16 characters -> embeddings -> tanh(W0 x + b0) -> tanh(W1 h + b1) -> W2 h + b2 -> softmax over the next
//   character
//
// Every rank holds just its rows of each matrix, and of Adam's two moments of it. Activations go through
// shared memory (Exchange). No sum depends on the number of ranks: rows are split at the bounds of kRowGroups
// fixed groups, sums over rows are taken within a group first, and then over the groups in order. So the same
// run with 1, 2 or 4 ranks gives the same bits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data.h"
#include "exchange.h"

namespace esker::example {

// One parameter tensor of the whole model. A bias has no columns of its own: its shape is {rows}.
struct ParameterShape {
  std::string name;
  uint64_t rows = 0;
  uint64_t columns = 1;
  bool is_bias = false;
};
// In the order of the model's layers, which is also the order of the final-state file. `hidden` is a multiple
// of kBatch.
std::vector<ParameterShape> ParameterShapes(uint64_t hidden);

// The rows [begin, end) that a rank owns.
struct RowRange {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t size() const { return end - begin; }
};
RowRange RowsOfRank(uint64_t rows, uint32_t rank, uint32_t ranks);

// One rank's rows of one parameter, with Adam's moments.
struct ParameterShard {
  ParameterShape shape;
  RowRange rows;
  std::vector<float> weight;      // rows.size() x shape.columns, row-major, as are the moments
  std::vector<float> exp_avg;     // Adam's mean of the gradients
  std::vector<float> exp_avg_sq;  // Adam's mean of their squares

  float* Row(uint64_t row) { return weight.data() + (row - rows.begin) * shape.columns; }
};

// Not thread-safe. All ranks call Step together: it waits for the peers (Exchange::Barrier) several times.
class Model {
 public:
  // Initial weights are drawn from `seed` alone. `exchange` must outlive the model.
  Model(uint64_t hidden, uint64_t seed, uint32_t rank, uint32_t ranks, Exchange* exchange);

  // One step of training: forward, backward, Adam. `step` counts from 1. Returns the mean loss, the same on
  // every rank.
  double Step(const Batch& batch, uint64_t step);

  // What makes up the rank's state, to save and restore.
  std::vector<ParameterShard>& parameters() { return parameters_; }

 private:
  // Y = W X + b for the rank's rows; X and Y are [row][sample].
  void Forward(const ParameterShard& weight, const ParameterShard& bias, const float* x, float* y) const;
  void Tanh(const RowRange& rows, float* y) const;
  // The loss, and its gradient by the logits of the rank's rows.
  double LossAndGradient(const Batch& batch, const float* logits, float* gradient) const;
  // The rank's share of W^T dY, a partial sum per row group.
  void BackwardPartials(ParameterShard& weight, const float* dy, float* partials) const;
  // dY of the rank's rows: sums the partials of all groups in order, and goes back through y = tanh(…).
  void GatherGradient(const RowRange& rows, uint64_t row_count, const float* partials, const float* y,
                      float* dy) const;
  // Adam on the rank's rows with dW = dY X^T, db = the sum of dY.
  void Update(ParameterShard& weight, ParameterShard& bias, const float* dy, const float* x, uint64_t step);
  void UpdateEmbedding(const Batch& batch, uint64_t step);

  const uint64_t hidden_;
  Exchange* const exchange_;
  std::vector<ParameterShard> parameters_;
  std::vector<float> dy_[3];        // of the three layers; only the rank's rows are filled in
  std::vector<float> x_by_sample_;  // scratch of Update: X transposed
  std::vector<float> gradient_;     // scratch of Update: one row
};

}  // namespace esker::example
