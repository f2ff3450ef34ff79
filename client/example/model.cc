#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>

namespace esker::example {
static_assert(kBatch % kRowGroups == 0,
              "a hidden size that is a multiple of kBatch splits into kRowGroups groups");

namespace {

constexpr float kLearningRate = 1e-3f;
constexpr float kBeta1 = 0.9f;
constexpr float kBeta2 = 0.999f;
constexpr float kEpsilon = 1e-8f;

// The parameters' places in Model::parameters_.
enum { kEmbed, kWeight0, kBias0, kWeight1, kBias1, kWeight2, kBias2 };

// kBatch sums side by side. Each lane adds in the order of the calls, so vector instructions change no bit.
struct Lanes {
  typedef float Vector __attribute__((vector_size(16)));
  static constexpr uint64_t kVectors = kBatch * sizeof(float) / sizeof(Vector);
  Vector sums[kVectors];

  explicit Lanes(float initial) {
    for (Vector& sum : sums) sum = Vector{initial, initial, initial, initial};
  }
  void Add(float factor, const float* values) {
    for (uint64_t v = 0; v < kVectors; ++v) {
      Vector value;
      std::memcpy(&value, values + v * 4, sizeof(value));
      sums[v] += factor * value;
    }
  }
  void Store(float* to) const { std::memcpy(to, sums, sizeof(sums)); }
};

void Transpose(const float* from, uint64_t rows, float* to) {
  for (uint64_t row = 0; row < rows; ++row) {
    for (uint64_t b = 0; b < kBatch; ++b) to[b * rows + row] = from[row * kBatch + b];
  }
}

// Adam on `count` weights from the weight at `first` on.
void Adam(ParameterShard& parameter, uint64_t first, uint64_t count, const float* gradient, uint64_t step) {
  const float correction1 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kBeta1), step)));
  const float correction2 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kBeta2), step)));
  float* const weight = parameter.weight.data() + first;
  float* const mean = parameter.exp_avg.data() + first;
  float* const square = parameter.exp_avg_sq.data() + first;
  for (uint64_t i = 0; i < count; ++i) {
    const float g = gradient[i];
    mean[i] = kBeta1 * mean[i] + (1 - kBeta1) * g;
    square[i] = kBeta2 * square[i] + (1 - kBeta2) * g * g;
    weight[i] -= kLearningRate * (mean[i] * correction1) / (std::sqrt(square[i] * correction2) + kEpsilon);
  }
}

}  // namespace

std::vector<ParameterShape> ParameterShapes(uint64_t hidden) {
  return {
      {"embedding.weight", kVocabulary, kEmbedding},
      {"hidden.0.weight", hidden, kInputs},
      {"hidden.0.bias", hidden, 1, true},
      {"hidden.1.weight", hidden, hidden},
      {"hidden.1.bias", hidden, 1, true},
      {"output.weight", kVocabulary, hidden},
      {"output.bias", kVocabulary, 1, true},
  };
}

RowRange RowsOfRank(uint64_t rows, uint32_t rank, uint32_t ranks) {
  const uint64_t group_rows = rows / kRowGroups;
  return {rank * kRowGroups / ranks * group_rows, (rank + 1) * kRowGroups / ranks * group_rows};
}

Model::Model(uint64_t hidden, uint64_t seed, uint32_t rank, uint32_t ranks, Exchange* exchange)
    : hidden_(hidden), exchange_(exchange) {
  std::mt19937_64 random(seed);
  for (const ParameterShape& shape : ParameterShapes(hidden)) {
    ParameterShard shard{shape, RowsOfRank(shape.rows, rank, ranks), {}, {}, {}};
    const uint64_t size = shard.rows.size() * shape.columns;
    shard.weight.resize(size);
    shard.exp_avg.resize(size);
    shard.exp_avg_sq.resize(size);
    // Every rank draws the whole matrix and keeps its rows, so that the weights don't depend on the number of
    // ranks.
    const float scale =
        shape.is_bias ? 0 : static_cast<float>(std::sqrt(3.0 / static_cast<double>(shape.columns)));
    for (uint64_t i = 0; i < shape.rows * shape.columns; ++i) {
      const float draw = static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-52 - 1);  // -1 to 1
      const uint64_t row = i / shape.columns;
      if (row >= shard.rows.begin && row < shard.rows.end) {
        shard.weight[i - shard.rows.begin * shape.columns] = draw * scale;
      }
    }
    parameters_.push_back(std::move(shard));
  }
  dy_[0].resize(hidden * kBatch);
  dy_[1].resize(hidden * kBatch);
  dy_[2].resize(kVocabulary * kBatch);
  x_by_sample_.resize(std::max(hidden, kInputs) * kBatch);
  gradient_.resize(std::max(hidden, kInputs));
}

double Model::Step(const Batch& batch, uint64_t step) {
  std::vector<ParameterShard>& p = parameters_;
  float* const x = exchange_->input();
  float* const h0 = exchange_->hidden(0);
  float* const h1 = exchange_->hidden(1);

  for (uint64_t b = 0; b < kBatch; ++b) {
    for (uint64_t c = 0; c < kContext; ++c) {
      const uint8_t character = batch.context[b][c];
      if (character < p[kEmbed].rows.begin || character >= p[kEmbed].rows.end) continue;
      const float* const embedding = p[kEmbed].Row(character);
      for (uint64_t e = 0; e < kEmbedding; ++e) x[(c * kEmbedding + e) * kBatch + b] = embedding[e];
    }
  }
  exchange_->Barrier();
  Forward(p[kWeight0], p[kBias0], x, h0);
  Tanh(p[kWeight0].rows, h0);
  exchange_->Barrier();
  Forward(p[kWeight1], p[kBias1], h0, h1);
  Tanh(p[kWeight1].rows, h1);
  exchange_->Barrier();
  Forward(p[kWeight2], p[kBias2], h1, exchange_->logits());
  exchange_->Barrier();

  const double loss = LossAndGradient(batch, exchange_->logits(), dy_[2].data());
  BackwardPartials(p[kWeight2], dy_[2].data(), exchange_->partials(2));
  exchange_->Barrier();
  GatherGradient(p[kWeight1].rows, hidden_, exchange_->partials(2), h1, dy_[1].data());
  BackwardPartials(p[kWeight1], dy_[1].data(), exchange_->partials(1));
  exchange_->Barrier();
  GatherGradient(p[kWeight0].rows, hidden_, exchange_->partials(1), h0, dy_[0].data());
  BackwardPartials(p[kWeight0], dy_[0].data(), exchange_->partials(0));
  exchange_->Barrier();

  Update(p[kWeight2], p[kBias2], dy_[2].data(), h1, step);
  Update(p[kWeight1], p[kBias1], dy_[1].data(), h0, step);
  Update(p[kWeight0], p[kBias0], dy_[0].data(), x, step);
  UpdateEmbedding(batch, step);
  // The next step overwrites what peers may still read.
  exchange_->Barrier();
  return loss;
}

void Model::Forward(const ParameterShard& weight, const ParameterShard& bias, const float* x,
                    float* y) const {
  const uint64_t columns = weight.shape.columns;
  for (uint64_t row = weight.rows.begin; row < weight.rows.end; ++row) {
    const uint64_t local = row - weight.rows.begin;
    const float* const w = weight.weight.data() + local * columns;
    Lanes sums(bias.weight[local]);
    for (uint64_t i = 0; i < columns; ++i) sums.Add(w[i], x + i * kBatch);
    sums.Store(y + row * kBatch);
  }
}

void Model::Tanh(const RowRange& rows, float* y) const {
  for (uint64_t i = rows.begin * kBatch; i < rows.end * kBatch; ++i) y[i] = std::tanh(y[i]);
}

double Model::LossAndGradient(const Batch& batch, const float* logits, float* gradient) const {
  const RowRange rows = parameters_[kWeight2].rows;
  double loss = 0;
  for (uint64_t b = 0; b < kBatch; ++b) {
    float most = logits[b];
    for (uint64_t v = 1; v < kVocabulary; ++v) most = std::max(most, logits[v * kBatch + b]);
    float exps[kVocabulary];
    float sum = 0;
    for (uint64_t v = 0; v < kVocabulary; ++v) sum += exps[v] = std::exp(logits[v * kBatch + b] - most);
    loss +=
        std::log(static_cast<double>(sum)) - static_cast<double>(logits[batch.next[b] * kBatch + b] - most);
    for (uint64_t v = rows.begin; v < rows.end; ++v) {
      gradient[v * kBatch + b] = (exps[v] / sum - (v == batch.next[b] ? 1.0f : 0.0f)) / kBatch;
    }
  }
  return loss / kBatch;
}

void Model::BackwardPartials(ParameterShard& weight, const float* dy, float* partials) const {
  const uint64_t columns = weight.shape.columns;
  const uint64_t group_rows = weight.shape.rows / kRowGroups;
  for (uint64_t first = weight.rows.begin; first < weight.rows.end; first += group_rows) {
    float* const to = partials + first / group_rows * columns * kBatch;
    for (uint64_t i = 0; i < columns; ++i) {
      Lanes sums(0);
      for (uint64_t row = first; row < first + group_rows; ++row)
        sums.Add(weight.Row(row)[i], dy + row * kBatch);
      sums.Store(to + i * kBatch);
    }
  }
}

void Model::GatherGradient(const RowRange& rows, uint64_t row_count, const float* partials, const float* y,
                           float* dy) const {
  for (uint64_t i = rows.begin * kBatch; i < rows.end * kBatch; ++i) {
    float sum = 0;
    for (uint64_t group = 0; group < kRowGroups; ++group) sum += partials[group * row_count * kBatch + i];
    dy[i] = sum * (1 - y[i] * y[i]);
  }
}

void Model::Update(ParameterShard& weight, ParameterShard& bias, const float* dy, const float* x,
                   uint64_t step) {
  const uint64_t columns = weight.shape.columns;
  Transpose(x, columns, x_by_sample_.data());
  for (uint64_t row = weight.rows.begin; row < weight.rows.end; ++row) {
    const uint64_t local = row - weight.rows.begin;
    const float* const dy_row = dy + row * kBatch;
    for (uint64_t i = 0; i < columns; i += kBatch) {  // kBatch columns side by side
      Lanes sums(0);
      for (uint64_t b = 0; b < kBatch; ++b) sums.Add(dy_row[b], x_by_sample_.data() + b * columns + i);
      sums.Store(gradient_.data() + i);
    }
    Adam(weight, local * columns, columns, gradient_.data(), step);
    float sum = 0;
    for (uint64_t b = 0; b < kBatch; ++b) sum += dy_row[b];
    Adam(bias, local, 1, &sum, step);
  }
}

void Model::UpdateEmbedding(const Batch& batch, uint64_t step) {
  ParameterShard& embedding = parameters_[kEmbed];
  const float* const partials = exchange_->partials(0);
  std::vector<float> gradient(embedding.weight.size());
  for (uint64_t b = 0; b < kBatch; ++b) {
    for (uint64_t c = 0; c < kContext; ++c) {
      const uint64_t character = batch.context[b][c];
      if (character < embedding.rows.begin || character >= embedding.rows.end) continue;
      float* const to = gradient.data() + (character - embedding.rows.begin) * kEmbedding;
      for (uint64_t e = 0; e < kEmbedding; ++e) {
        const uint64_t input = (c * kEmbedding + e) * kBatch + b;
        for (uint64_t group = 0; group < kRowGroups; ++group)
          to[e] += partials[group * kInputs * kBatch + input];
      }
    }
  }
  Adam(embedding, 0, gradient.size(), gradient.data(), step);
}

}  // namespace esker::example
